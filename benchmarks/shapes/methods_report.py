"""Write the tables and plots of docs/methods.md from the rows of `pairs.py`,
`ablations.py` and `tradeoff.py`.

    python benchmarks/shapes/methods_report.py
"""

import csv
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean, median

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from ablations import interval
from edits import KINDS
from nti.inversion.methods import METHODS, passes
from report import grid

RESULTS = Path("benchmarks/results")
PAGE = Path("docs/methods.md")
PLOTS = Path("docs")

Rows = list[dict[str, str]]

MARKERS = "os^D"
"""Of lines, as there are more of them than colours."""


def read(pattern: str) -> Rows:
    """Return the rows of the result files that fit a pattern."""
    rows: Rows = []
    for path in sorted(RESULTS.glob(pattern)):
        with path.open(newline="") as file:
            rows += csv.DictReader(file)
    return rows


def source(rows: Rows, what: str) -> str:
    """Say what rows were measured on."""
    commits = sorted({row["commit"] + ("+" if row["dirty"] == "True" else "") for row in rows})
    machines = sorted({row["device"] for row in rows})
    versions = sorted({row["torch"] for row in rows})
    return (
        f"\n{what}, T = {rows[0]['steps']}, {'; '.join(machines)}, torch {', '.join(versions)},"
        f" commit {', '.join(commits)}."
    )


def spread(values: Iterable[float], digits: int = 1) -> str:
    """Return a mean with its 95 % interval."""
    mean, low, high = interval(list(values))
    return f"{mean:.{digits}f} ({low:.{digits}f} .. {high:.{digits}f})"


def numbers(rows: Rows, column: str) -> list[float]:
    """Return a column, one mean a scene: the edits of a scene are not independent.

    What is not finite, as the PSNR of an edit that is exact, or has nothing outside, is left out.
    """
    return _by_scene(rows, [float(row[column]) for row in rows])


def correct(rows: Rows) -> list[float]:
    """Return the share of edits whose attribute is there, in percent, of each scene."""
    return _by_scene(rows, [100.0 * (row["correct"] == "True") for row in rows])


def _by_scene(rows: Rows, values: Sequence[float]) -> list[float]:
    scenes: dict[str, list[float]] = {}
    for row, value in zip(rows, values, strict=True):
        if math.isfinite(value):
            scenes.setdefault(row["seed"], []).append(value)
    return [mean(found) for found in scenes.values()]


def methods_table() -> str:
    """Return all rows of the table of methods, with their cost at published settings."""
    head = ["method", "arXiv", "an inversion keeps", "forward", "backward", "what it does"]
    cells = {}
    for name, row in METHODS.items():
        forward, backward = passes(row, 50, 10)
        cells[f"`{name}`"] = [row.paper, row.stores, str(forward), str(backward), row.summary]
    return "\n".join(grid(head, cells))


def _figures(rows: Rows, inversion: str = "inversion_gflop") -> list[str]:
    return [
        spread(numbers(rows, "reconstruction")),
        spread(correct(rows)),
        spread(numbers(rows, "psnr_outside")),
        spread(numbers(rows, "ssim_outside"), 3),
        spread(numbers(rows, "psnr_inside")),
        spread(numbers(rows, "ssim_inside"), 3),
        f"{interval(numbers(rows, inversion))[0]:.0f}",
        f"{interval(numbers(rows, 'edit_gflop'))[0]:.0f}",
    ]


HEAD = [
    "reconstruction, dB", "correct, %", "PSNR outside", "SSIM outside", "PSNR inside",
    "SSIM inside", "inversion, GFLOP", "edit, GFLOP",
]  # fmt: skip


def by_method(rows: Rows) -> str:
    """Return what each method gives with Prompt-to-Prompt."""
    rows = [row for row in rows if row["editor"] == "p2p"]
    found = {name: [r for r in rows if r["method"] == name] for name in METHODS}
    cells = {f"`{name}`": _figures(some) for name, some in found.items() if some}
    count = max(len(some) for some in found.values())
    scenes = len({row["seed"] for row in rows})
    what = f"{count} edits of {scenes} scenes for each method"
    return "\n".join([*grid(["method", *HEAD], cells), source(rows, what)])


def matrix(rows: Rows) -> str:
    """Return each method with each editor: correct share, and what is kept."""
    editors = list(dict.fromkeys(row["editor"] for row in rows))
    cells: dict[str, list[str]] = {}
    for name in METHODS:
        line = []
        for editor in editors:
            some = [r for r in rows if (r["method"], r["editor"]) == (name, editor)]
            kept = interval(numbers(some, "psnr_outside"))[0]
            right = interval(correct(some))[0]
            line.append(f"{right:.0f} %, {kept:.1f} dB" if some else "")
        if any(line):
            cells[f"`{name}`"] = line
    columns = [[r for r in rows if r["editor"] == editor] for editor in editors]
    for label, column, digits in (
        ("*GFLOP an edit*", "edit_gflop", 0),
        ("*seconds an edit, median*", "edit_seconds", 1),
    ):
        cells[label] = [
            f"{median(float(row[column]) for row in some):.{digits}f}" for some in columns
        ]
    return "\n".join([*grid(["method", *editors], cells), source(rows, f"{len(rows)} edits")])


def of_objects(rows: Rows) -> str:
    """Return the same for the edits of objects alone."""
    return matrix([row for row in rows if row["kind"] != "background"])


def by_kind(rows: Rows) -> str:
    """Return the best method of each editor for each kind of edit, and null-text beside it."""
    cells = {}
    for kind in KINDS:
        for editor in dict.fromkeys(row["editor"] for row in rows):
            some = [r for r in rows if (r["kind"], r["editor"]) == (kind, editor)]
            ranked = sorted(dict.fromkeys(r["method"] for r in some), key=_score_of(some))
            for name in dict.fromkeys([*ranked[-1:], *(["null-text"] if ranked else [])]):
                mine = [r for r in some if r["method"] == name]
                if mine:
                    cells[f"{kind}, {editor}, `{name}`"] = [
                        spread(correct(mine)),
                        spread(numbers(mine, "psnr_outside")),
                        spread(numbers(mine, "psnr_inside")),
                    ]
    return "\n".join(
        grid(["kind, editor, method", "correct, %", "PSNR outside", "PSNR inside"], cells)
    )


def fast(rows: Rows) -> str:
    """Return `null-text-fast` beside `null-text` at each guidance, and their difference by edit."""
    cells: dict[str, list[str]] = {}
    for w in dict.fromkeys(row["guidance"] for row in rows):
        whole, some = (
            [row for row in rows if (row["guidance"], row["method"]) == (w, name)]
            for name in ("null-text", "null-text-fast")
        )
        work = [interval(numbers(mine, "inversion_gflop"))[0] for mine in (some, whole)]
        cells[f"`null-text`, w = {w}"] = _figures(whole)
        cells[f"`null-text-fast`, w = {w}"] = _figures(some)
        cells[f"*fast less null-text*, w = {w}"] = [
            _difference(some, whole, "reconstruction"),
            _difference(some, whole, "correct"),
            _difference(some, whole, "psnr_outside"),
            _difference(some, whole, "ssim_outside", 3),
            _difference(some, whole, "psnr_inside"),
            _difference(some, whole, "ssim_inside", 3),
            f"{work[0] / work[1]:.3f} of it",
            "",
        ]
    scenes, edits = (len({tuple(row[k] for k in key) for row in rows}) for key in (SCENE, EDIT))
    what = f"{edits} edits of {scenes} scenes for each method"
    return "\n".join([*grid(["method", *HEAD], cells), source(rows, what)])


SCENE, EDIT = ("seed",), ("seed", "kind")
"""The columns by which rows of two methods belong together."""


def _difference(some: Rows, others: Rows, column: str, digits: int = 2) -> str:
    """Return the mean difference of a column with its interval, of the same edits."""

    def value(row: dict[str, str]) -> float:
        return 100.0 * (row[column] == "True") if column == "correct" else float(row[column])

    theirs = {tuple(row[k] for k in EDIT): value(row) for row in others}
    found = [value(row) - theirs[tuple(row[k] for k in EDIT)] for row in some]
    return spread(_by_scene(some, found), digits)


def _score_of(rows: Rows) -> Callable[[str], float]:
    """Rank by the share of edits that are correct, then by what is kept."""

    def score(name: str) -> float:
        mine = [r for r in rows if r["method"] == name]
        return interval(correct(mine))[0] + interval(numbers(mine, "psnr_outside"))[0] / 1000

    return score


def curves(
    rows: Rows, names: Sequence[str], path: Path, labels: Sequence[str], x: str = "x"
) -> None:
    """Draw figures over the axis, a line a case, with intervals."""
    figure, axes = plt.subplots(
        1, len(names), figsize=(5.2 * len(names), 3.8), layout="constrained", squeeze=False
    )
    for axis, name, label in zip(axes[0], names, labels, strict=True):
        some = [row for row in rows if row["name"] == name]
        for number, case in enumerate(dict.fromkeys(row["case"] for row in some)):
            mine = sorted((r for r in some if r["case"] == case), key=lambda r: float(r[x]))
            at, value, low, high = (
                [float(r[n]) for r in mine] for n in (x, "value", "low", "high")
            )
            if at == [0.0]:  # a bound: no work leads there
                axis.axhline(value[0], color="black", linestyle=":", label=case)
                continue
            errors = [
                [v - lo for v, lo in zip(value, low, strict=True)],
                [hi - v for v, hi in zip(value, high, strict=True)],
            ]
            look = {"color": f"C{number % 10}", "marker": MARKERS[number // 10]}
            axis.errorbar(at, value, errors, markersize=4, capsize=2, label=case, **look)
        axis.set(xlabel=label, ylabel=", ".join(filter(None, (name, some[0]["unit"]))))
        axis.grid(alpha=0.3)
    axes[0][-1].legend(fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def figure_table(rows: Rows, x: str) -> str:
    """Return all figures of a section."""
    counted = any(float(row["gflop"]) for row in rows)
    head = ["figure", "value", *(["GFLOP an image"] if counted else [])]
    cells = {
        ", ".join(
            [row["case"], row["name"], *([f"{x} {v:g}"] if (v := float(row["x"])) else [])]
        ): [
            f"{float(row['value']):.2f} ({float(row['low']):.2f} .. {float(row['high']):.2f})"
            f" {row['unit']}",
            *([row["gflop"]] if counted else []),
        ]
        for row in rows
    }
    scenes = f"Mean over {rows[0]['scenes']} scenes with its 95 % interval"
    return "\n".join([*grid(head, cells), source(rows, scenes)])


FIGURES: dict[str, tuple[str, tuple[str, ...]]] = {
    "background": ("", ()),
    "iterations": ("N =", ("reconstruction",)),
    "fast-w3": ("N or F =", ("reconstruction", "kept", "edited")),
    "fast-w7.5": ("N or F =", ("reconstruction", "kept", "edited")),
    "captions": ("N =", ("reconstruction",)),
    "strength": ("t0 =", ("kept", "edited")),
    "guidance": ("w =", ("reconstruction", "log-density", "squared norm / d", "autocorrelation")),
}
"""The sections of `ablations.py` and `tradeoff.py`: what their axis is called, what is plotted."""


OVER_WORK = ("iterations", "fast-w3", "fast-w7.5")
"""Sections that are plotted over the work, as one iteration of one method is not one of another."""


def arms(rows: Rows) -> str:
    """Return a section without an axis: a line an arm, a column a figure."""
    names = list(dict.fromkeys(f"{row['name']}, {row['unit']}" for row in rows))
    cells: dict[str, list[str]] = {}
    for row in rows:
        value, low, high = (f"{float(row[column]):.1f}" for column in ("value", "low", "high"))
        cells.setdefault(row["case"], []).append(f"{value} ({low} .. {high})")
    scenes = f"Mean over {rows[0]['scenes']} scenes with its 95 % interval"
    return "\n".join([*grid(["", *names], cells), source(rows, scenes)])


def figure(section: str) -> str:
    """Draw a section's plot, and return its table."""
    rows, (x, plotted) = read(f"ablation-{section}.csv"), FIGURES[section]
    if not plotted:
        return arms(rows)
    over = "gflop" if section in OVER_WORK else "x"
    label = "GFLOP of the UNet for one image" if over == "gflop" else x.rstrip(" =")
    curves(rows, plotted, PLOTS / f"methods-{section}.png", [label] * len(plotted), over)
    return figure_table(rows, x)


def part(name: str) -> str:
    """Return what belongs to a place of the page."""
    if name == "methods":
        return methods_table()
    if name in FIGURES:
        return figure(name)
    if name == "fast":
        return fast(read("fast-*.csv"))
    tables = {
        "by method": by_method, "matrix": matrix, "objects": of_objects, "by kind": by_kind,
    }  # fmt: skip
    return tables[name](read("pairs*.csv"))


def main() -> None:
    """Rewrite each table that the page has a place for, and the plots."""
    page = PAGE.read_text("utf-8")
    for name in re.findall(r"<!-- methods: (.*?) -->", page):
        place = re.compile(rf"(<!-- methods: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        body = part(name)
        page = place.sub(lambda m, body=body: f"{m[1]}{body}\n{m[2]}", page)
    PAGE.write_text(page, "utf-8")


if __name__ == "__main__":
    main()
