"""Turn the rows of `run.py` into README's performance section and a plot.

    python benchmarks/report.py

The tables stand between `<!-- performance -->` and `<!-- end performance -->`.
"""

import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from rows import Row, read_rows

ROOT = Path(__file__).parent.parent
RESULTS, PLOT = ROOT / "benchmarks" / "results", ROOT / "docs" / "performance.png"
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


def main() -> None:
    """Write the section and the plot."""
    rows = {name: read_rows(RESULTS / f"{name}.csv") for name in TITLES}
    roofs = _roofs(rows["roofline"])
    parts = [part for name, some in rows.items() if some for part in _section(name, some, roofs)]
    readme = ROOT / "README.md"
    text = "\n".join([*parts, ""])
    readme.write_text(SECTION.sub(lambda m: m[1] + text + m[2], readme.read_text("utf-8")), "utf-8")
    if rows["step"]:
        _plot(rows["step"])


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
            cells.append(f"{base.p50_ms / row.p50_ms:.2f}")
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


def _plot(rows: list[Row]) -> None:
    """Draw the ladder, one panel a case and device."""
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
        axis.set(title=f"{case.case}, {case.dtype}", xlabel="ms an inner iteration")
    figure.savefig(PLOT, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
