r"""Keep what a run over held-out scenes gave, as rows.

    python benchmarks/shapes/manifest.py 200 -o train/world
    nti run train/world/manifest.jsonl -o train/out --method null-text-fast --steps 20 \
        --ray local --workers 2 --batch 1
    nti evaluate train/out
    python benchmarks/shapes/world_run.py train/out --out benchmarks/results/world-run.csv

Each row is a metric of a kind of edits, with its mean over the scenes and a 95 % interval.
"""

import argparse
import csv
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from ablations import interval
from machine import commit, device, is_dirty
from nti.datasets.addresses import open_folder
from nti.datasets.results import Results


@dataclass(frozen=True)
class Row:
    """One figure."""

    kind: str
    name: str
    items: int
    value: float
    low: float
    high: float
    method: str
    steps: int
    device: str
    torch: str
    commit: str
    dirty: bool


def main() -> None:
    """Read the folder, and write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    results = Results(open_folder(str(options.folder)))
    settings = results.run()["settings"]
    kinds: dict[str, str] = {}
    values: dict[tuple[str, str], list[float]] = {}
    for record in results.records():
        for number in range(len(record["edits"])):
            kinds[record["id"] + (f"#{number + 1}" if number else "")] = record["type"]
        own = {
            "reconstruction, dB": record["psnr"],
            "inversion, s": record["seconds"]["inversion"],
            "edits and pictures, s": record["seconds"]["edits"],
        }
        _keep(values, record["type"], own)
    with (options.folder / "metrics.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            measured = {n.partition("|")[2]: float(v) for n, v in line.items() if "|" in n}
            _keep(values, kinds[line["file_id"]], measured)
    where = (device(), torch.__version__, commit(), is_dirty())
    rows = [
        Row(
            kind, name, len(some), *(round(x, 4) for x in interval(some)),
            settings.get("method", "null-text"), settings.get("steps", 50), *where,
        )
        for (kind, name), some in sorted(values.items())
    ]  # fmt: skip
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    print(f"wrote {options.out}: {len(rows)} rows")


def _keep(values: dict[tuple[str, str], list[float]], kind: str, found: dict[str, float]) -> None:
    for name, value in found.items():
        if math.isfinite(value):
            values.setdefault((kind, name), []).append(value)
            values.setdefault(("all", name), []).append(value)


if __name__ == "__main__":
    main()
