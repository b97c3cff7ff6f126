"""Time and memory against pixels, images, prompts and timesteps, on a CPU.

    python benchmarks/growth.py                        measure, each point in its own process
    python benchmarks/growth.py measure SERIES X       one series, or one point of it, anew
    python benchmarks/growth.py report                 the table and plot of docs/performance.md

Random weights of Stable Diffusion v1's size; timesteps are counted on the embedded model. The
exponent p of two neighbouring points says that the time grows with x^p between them.
"""

import argparse
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import matplotlib
import torch

matplotlib.use("Agg")
from matplotlib import pyplot as plt

import nti
from cases import random_model
from embed import by_steps
from nti.config import SD_V1
from nti.demo import sample_image
from nti.export.functions import functions_of
from rows import Row, make_row, read_rows, write_rows
from timing import printed_by, resident_peak_mib

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parent.parent
PAGE, PLOT = ROOT / "docs" / "performance.md", ROOT / "docs" / "growth.png"
PLACE = re.compile(r"(<!-- growth -->\n).*?(<!-- end growth -->)", re.DOTALL)

Run = Callable[[], object]


def step(name: str, side: int, batch: int = 1, edits: int = 1) -> Run:
    """Return one of `nti.export.functions` by the model's own steps, on random inputs."""
    model = random_model(SD_V1, torch.float32, CPU)
    functions = {each.name: each for each in functions_of(model, (side, side), batch, edits)}
    return partial(by_steps, model, name, list(functions[name].inputs.values()))


def decoding(images: int) -> Run:
    """Return the decoding of so many latents of 512 px, as an edit of as many prompts ends."""
    model = random_model(SD_V1, torch.float32, CPU, whole=True)
    latents = torch.randn(images, 4, 64, 64)
    return lambda: model.decode_latent(latents)


def timesteps(steps: int) -> Run:
    """Return a whole inversion of the embedded model, with two iterations a timestep."""
    model, image = nti.load_model(), sample_image("red-cross")
    settings = nti.InversionSettings(steps, inner_steps=2, threshold=lambda index, count: 0.0)
    return lambda: nti.invert_batch(model, [image], ["a red cross on wood"], settings)


SERIES: dict[str, tuple[Callable[[int], Run], tuple[int, ...]]] = {
    "an inner iteration, pixels of a side": (
        lambda x: step("iteration", x),
        (128, 256, 512, 768, 1024),
    ),
    "an inner iteration at 256 px, images": (
        lambda x: step("iteration", 256, batch=x),
        (1, 2, 4, 8, 16),
    ),
    "a step of an edit at 256 px, prompts": (
        lambda x: step("controlled", 256, edits=x),
        (1, 2, 4, 8),
    ),
    "decoding at 512 px, images": (decoding, (1, 2, 4, 8)),
    "an inversion of the embedded model, timesteps": (timesteps, (10, 20, 40, 80)),
}
"""What is measured, by its name and that of its axis."""


def one(name: str, x: int) -> None:
    """Run a point twice; print the milliseconds of the second run, and MiB before and at most."""
    base = resident_peak_mib()
    with torch.no_grad():
        run = SERIES[name][0](x)
        run()
        started = time.perf_counter()
        run()
    print(1e3 * (time.perf_counter() - started), base, resident_peak_mib())


def measure(only: str | None, point: int | None) -> Iterator[Row]:
    """Yield a row for each point, or for those of one series, or for one of its points."""
    for name, (_, values) in SERIES.items():
        for x in values:
            if only not in (None, name) or point not in (None, x):
                continue
            milliseconds, base, peak = printed_by("growth.py", ["one", name, str(x)], 3)
            yield make_row(
                "growth", "nti", f"{name}: {x}", milliseconds=[milliseconds], peak_mib=peak,
                imports_mib=base,
            )  # fmt: skip


def report(rows: Sequence[Row]) -> None:
    """Write the table and the plot."""
    if not rows:
        raise SystemExit("growth: no rows, expected those of `growth.py` in benchmarks/results")
    rows = [row for row in rows if row.device == rows[-1].device]
    lines = ["|  | x | seconds | exponent | peak, MiB |", "|---|---:|---:|---:|---:|"]
    figure, axes = plt.subplots(
        2, len(SERIES), figsize=(3.6 * len(SERIES), 6), layout="constrained"
    )
    for number, name in enumerate(SERIES):
        what, _, axis = name.rpartition(", ")
        mine = sorted(
            ((int(r.case.rpartition(": ")[2]), r) for r in rows if r.case.startswith(name + ":")),
            key=lambda point: point[0],
        )
        before: tuple[int, Row] | None = None
        for x, row in mine:
            exponent = ""
            if before is not None:
                grown = math.log(row.p50_ms / before[1].p50_ms) / math.log(x / before[0])
                exponent = f"{grown:.2f}"
            lines.append(
                f"| {what}, by {axis} | {x} | {row.p50_ms / 1e3:.2f} | {exponent} |"
                f" {row.peak_mib:,.0f} |"
            )
            before = x, row
        at = [x for x, _ in mine]
        seconds = [r.p50_ms / 1e3 for _, r in mine]
        times, peaks = axes[:, number]
        times.plot(at, seconds, "o-")
        times.set(yscale="log", ylabel="seconds")
        times.set_yticks(seconds, [f"{x:.3g}" for x in seconds], fontsize=7)
        gib = [r.peak_mib / 1024 for _, r in mine]
        peaks.plot(at, gib, "o-")
        peaks.set(ylim=(0, 1.1 * max(gib)), ylabel="peak, GiB")
        for panel in (times, peaks):
            panel.set(xscale="log", xlabel=axis)
            panel.set_xticks(at, [str(x) for x in at], fontsize=7)
            panel.minorticks_off()
            panel.grid(alpha=0.3)
        axes[0, number].set_title(what, fontsize=9)
    figure.savefig(PLOT, dpi=110, metadata={"Software": None})
    versions, commits = ({getattr(row, name) for row in rows} for name in ("torch", "commit"))
    what = f"torch {', '.join(sorted(versions))}, commit {', '.join(sorted(commits))}"
    lines += ["", f"{rows[-1].device}, {what}.", ""]
    text = "\n".join(lines)
    PAGE.write_text(PLACE.sub(lambda m: m[1] + text + m[2], PAGE.read_text("utf-8")), "utf-8")


def main() -> None:
    """Measure, or write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=["measure", "report", "one"], default="measure")
    parser.add_argument("series", nargs="?", choices=SERIES, help="(default: all)")
    parser.add_argument("x", nargs="?", type=int, help="(default: all of the series)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    values = SERIES[options.series][1] if options.series else ()
    if options.what == "measure" and options.x is not None and options.x not in values:
        parser.error(f"x: got {options.x}, expected one of {', '.join(map(str, values))}")
    path = options.out / "growth.csv"
    if options.what == "one":
        one(options.series, options.x)
    elif options.what == "report":
        report(read_rows(path))
    else:
        for row in measure(options.series, options.x):
            print(f"{row.case:<60} {row.p50_ms:>10.0f} ms {row.peak_mib:>8.0f} MiB", flush=True)
            write_rows([row], path)


if __name__ == "__main__":
    main()
