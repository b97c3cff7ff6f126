"""Turn the rows of `run.py` into the tables and the plot of docs/performance.md and README's one.

    python benchmarks/report.py

The tables stand between `<!-- performance -->` and `<!-- end performance -->`.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from rows import Row, read_rows

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE, PLOT = ROOT / "docs" / "performance.md", ROOT / "docs" / "performance.png"
SECTION = re.compile(r"(<!-- performance -->\n).*(<!-- end performance -->)", re.DOTALL)

BASES = {
    "step": "frozen",
    "compare": "before, 820af66",
    "edit": "published batch",
    "community": "NullTextPipeline",
}
"""What the ratios are to."""

TITLES = {
    "roofline": "The most that this machine reaches",
    "step": "One inner iteration of null-text optimization",
    "compare": "This tree, and the commit before its steps had a home of their own, in turns",
    "edit": "An edit of one prompt, default windows, without decoding",
    "inversion": "An inversion, time an image",
    "community": "An inversion by diffusers' community pipeline, and by this project",
    "load": "Loading a checkpoint",
    "compile": "The compiled inner iteration",
    "quick-compile": "The compiled inner iteration, at a fifth of the width",
    "kernels": "The Triton kernels at Stable Diffusion v1's shapes",
}


GPU, CPU, OTHER_CPU = "NVIDIA H200", "AMD EPYC, 2 cores", "AMD EPYC (family 25, model 17), 2 cores"


class Headline(NamedTuple):
    """A row of README's table: two rows of a section and device, and in words what they time."""

    words: str
    section: str
    device: str
    case: str
    theirs: str
    ours: str = "nti"


HEADLINES = (
    Headline(
        "one iteration of the optimization, 512 px", "step", GPU, "320 channels, 512 px",
        "published", "nti, CUDA graph",
    ),
    Headline(
        "one edit of 50 steps, 512 px", "edit", GPU, "320 channels, 512 px, 50 steps",
        "published batch", "nti, CUDA graph",
    ),
    Headline(
        "one iteration of the optimization, 256 px", "step", OTHER_CPU, "320 channels, 256 px",
        "published",
    ),
    Headline(
        "one edit of 10 steps, 256 px", "edit", CPU, "320 channels, 256 px, 10 steps",
        "published batch",
    ),
    Headline(
        "one timestep of ten iterations, 256 px", "community", CPU,
        "320 channels, 256 px, one timestep", "NullTextPipeline",
    ),
    Headline(
        "a whole inversion of the embedded model", "community", CPU, "embedded model, 50 steps",
        "NullTextPipeline",
    ),
)  # fmt: skip
"""The first two rows are half precision on a GPU, the others float32 on a CPU."""


def main() -> None:
    """Write the tables and the plot."""
    rows = {name: read_rows(RESULTS / f"{name}.csv") for name in TITLES}
    roofs = _roofs(rows["roofline"])
    parts = [part for name, some in rows.items() if some for part in _section(name, some, roofs)]
    _replace(PAGE, [*parts, ""])
    _replace(ROOT / "README.md", [*_headlines(rows), ""])
    if rows["step"]:
        _plot(rows["step"])


def _replace(page: Path, lines: list[str]) -> None:
    """Put lines between the page's marks."""
    text = "\n".join(lines)
    page.write_text(SECTION.sub(lambda m: m[1] + text + m[2], page.read_text("utf-8")), "utf-8")


def _headlines(rows: dict[str, list[Row]]) -> Iterator[str]:
    """Yield the lines of README's table."""
    yield "| what | on | published code | this project | times faster |"
    yield "|---|---|---:|---:|---:|"
    for line in HEADLINES:
        by = {
            row.provider: row.p50_ms
            for row in rows[line.section]
            if (row.case, row.device) == (line.case, line.device)
        }
        theirs, ours = by[line.theirs], by[line.ours]
        on = "GPU, float16" if line.device == GPU else "2 CPU cores, float32"
        yield (
            f"| {line.words} | {on} | {_seconds(theirs)} | {_seconds(ours)} | {theirs / ours:.1f} |"
        )


def _seconds(milliseconds: float) -> str:
    return f"{milliseconds:.0f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"


def _roofs(rows: list[Row]) -> dict[tuple[str, str], float]:
    """TFLOP/s of the fastest product of each device and dtype."""
    roofs: dict[tuple[str, str], float] = {}
    for row in rows:
        roofs[_machine(row)] = max(_rate(row), roofs.get(_machine(row), 0.0))
    return roofs


def _rate(row: Row) -> float:
    """TFLOP/s."""
    return 1e3 * row.tflop / row.p50_ms


def _machine(row: Row) -> tuple[str, str]:
    return row.device, row.dtype


def _section(name: str, rows: list[Row], roofs: dict[tuple[str, str], float]) -> list[str]:
    """Return a title, a table of all cases and a line on where it comes from."""
    ratios = name in BASES
    memory = any(row.peak_mib for row in rows)
    work = any(row.tflop for row in rows)
    checked = any(row.unit for row in rows)
    head = ["", "median ms (20 % .. 80 %)"]
    head += [f"speed, {BASES[name]} = 1"] if ratios else []
    imports = any(row.imports_mib for row in rows)
    head += ["peak MiB (imports)" if imports else "peak MiB"] if memory else []
    head += ["needed TFLOP/s, share of the most"] if work else []
    head += ["check"] if checked else []
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    for row in rows:
        cells = [f"{row.provider}, {row.case}, {row.dtype}"]
        cells.append(f"{_ms(row.p50_ms)} ({_ms(row.p20_ms)} .. {_ms(row.p80_ms)})")
        if ratios:
            (base,) = [r for r in rows if _like(r, row) and r.provider == BASES[name]]
            cells.append(f"{base.p50_ms / row.p50_ms:.3g}")
        if memory:
            of_it = f" ({row.imports_mib:,.0f})" if row.imports_mib else ""
            cells.append(f"{row.peak_mib:,.0f}{of_it}" if row.peak_mib else "")
        if work:
            roof = roofs.get(_machine(row))
            share = f", {_rate(row) / roof:.0%}" if roof else ""
            cells.append(f"{_rate(row):.3g}{share}" if row.tflop else "")
        if checked:
            cells.append(f"{row.quality:.3g} {row.unit}" if row.unit else "")
        lines.append(f"| {' | '.join(cells)} |")
    sources = sorted({f"{r.device}, torch {r.torch}, commit {r.commit}" for r in rows})
    return [f"**{TITLES[name]}**", "", *lines, "", f"{'; '.join(sources)}.", ""]


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.3g}"


def _like(one: Row, other: Row) -> bool:
    return (one.case, one.dtype, one.device) == (other.case, other.dtype, other.device)


def _unusual(row: Row) -> bool:
    """Whether it is of a busy machine, of one thread, or of threads that spin for another time."""
    return row.case.endswith("busy") or "SPINCOUNT" in row.case or row.device.endswith(", 1 cores")


def _plot(rows: list[Row]) -> None:
    """Draw the ladder, one panel a case and device, as machines usually are."""
    rows = [row for row in rows if not _unusual(row)]
    cases = [row for i, row in enumerate(rows) if not any(_like(row, r) for r in rows[:i])]
    figure, axes = plt.subplots(
        1, len(cases), figsize=(4.5 * len(cases), 2.6), layout="constrained", squeeze=False
    )
    for axis, case in zip(axes[0], cases, strict=True):
        some = [row for row in rows if _like(row, case)][::-1]
        spread = [
            [row.p50_ms - row.p20_ms for row in some],
            [row.p80_ms - row.p50_ms for row in some],
        ]
        axis.barh([row.provider for row in some], [row.p50_ms for row in some], xerr=spread)
        axis.set(xlabel="ms an inner iteration")
        axis.set_title(f"{case.case}, {case.dtype}\n{case.device}", fontsize=8)
    figure.savefig(PLOT, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
