"""What a saved inversion loses in half precision: size, and the pictures that come of it.

    python benchmarks/storage.py

A sample is inverted by the embedded model, saved in each dtype, read, reconstructed and edited. The
pictures are compared with those of the float32 file, and the reconstruction with the photograph.
docs/format.md gets the table.
"""

import argparse
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image

from nti import Inversion, edit, invert, load_model, reconstruct
from nti.demo import psnr, sample_captions, sample_image
from nti.image import load_image
from rows import Row, make_row, write_rows

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "format.md"
TABLE = re.compile(r"(<!-- storage -->\n).*(<!-- /storage -->)", re.DOTALL)
NAME, EDITED = "purple-circle", "a green circle on snow"
DTYPES = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}


def main() -> None:
    """Measure, print, write the rows and the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    rows = measured(options.steps)
    write_rows(rows, options.out / "inversion-storage.csv")
    table = _table(rows)
    print(table)
    PAGE.write_text(TABLE.sub(lambda m: m[1] + table + m[2], PAGE.read_text("utf-8")), "utf-8")


def measured(steps: int) -> list[Row]:
    """Return four rows a dtype: size, reconstruction, its photograph, edit."""
    model = load_model(dtype=torch.float32)
    inversion = invert(model, sample_image(NAME), sample_captions()[NAME], steps=steps)
    rows: list[Row] = []
    exact: tuple[Image.Image, ...] = ()
    bytes_of_float32 = 0
    for name, dtype in DTYPES.items():
        with TemporaryDirectory() as folder:
            path = Path(folder) / "x"
            inversion.save(path, dtype=dtype)
            size, found = path.stat().st_size, Inversion.load(path)
        pictures = reconstruct(model, found), edit(model, found, EDITED).images[0]
        exact, bytes_of_float32 = exact or pictures, bytes_of_float32 or size
        facts = {
            "of the float32 file's bytes": size / bytes_of_float32,
            "dB, reconstruction from the photograph": _psnr(pictures[0], sample_image(NAME)),
            "grey levels, reconstruction from float32's": _difference(pictures[0], exact[0]),
            "grey levels, edit from float32's": _difference(pictures[1], exact[1]),
        }
        for unit, value in facts.items():
            case = f"embedded model, {steps} steps: {unit}"
            rows.append(make_row("storage", name, case, quality=value, unit=unit))
    return rows


def _psnr(image: Image.Image, path: Path) -> float:
    return psnr(load_image(image, image.width), load_image(path, image.width))


def _difference(image: Image.Image, other: Image.Image) -> float:
    """The largest, in levels of 255."""
    pairs = zip(image.tobytes(), other.tobytes(), strict=True)
    return float(max(abs(a - b) for a, b in pairs))


def _table(rows: list[Row]) -> str:
    units = list(dict.fromkeys(row.unit for row in rows))
    lines = [f"| stored as | {' | '.join(units)} |", "|---|" + "---:|" * len(units)]
    for name in DTYPES:
        values = [row.quality for row in rows if row.provider == name]
        lines.append(f"| {name} | " + " | ".join(f"{value:g}" for value in values) + " |")
    where = f"Measured on {rows[0].device}, torch {rows[0].torch}, commit {rows[0].commit}."
    return "\n".join([*lines, "", where, ""])


if __name__ == "__main__":
    main()
