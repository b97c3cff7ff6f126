r"""Turn the rows of `evaluate.py` into tables of Markdown pages and a plot.

    python benchmarks/shapes/report.py benchmarks/results docs/guidance.png \
        docs/embedded-model.md

The tables stand in a page between `<!-- rows: NAME -->` and `<!-- end -->`.
"""

import csv
import re
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Rows = list[dict[str, str]]

KINDS = ("all", "colour", "shape", "pattern", "background")
"""Of edits, as in the figures' names."""
CURVE = ("autoencoder", "ddim", "null-text", "all correct", "all untouched median")


def read(path: Path) -> Rows:
    """Return a CSV file's rows."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def table(rows: Rows) -> str:
    """Lay rows out with a line a figure and a column a guidance scale, edits of one scale apart."""
    scales = list(dict.fromkeys(row["guidance"] for row in rows))
    names = list(dict.fromkeys(row["name"] for row in rows))
    values = {(r["name"], r["guidance"]): f"{float(r['value']):.1f} {r['unit']}" for r in rows}
    edits = [name for name in names if name.split()[0] in KINDS]
    lines = []
    if len(scales) == 1 and edits:
        names = [name for name in names if name not in edits]
        figures = list(dict.fromkeys(name.partition(" ")[2] for name in edits))
        cells = {
            kind: [values[f"{kind} {figure}", scales[0]] for figure in figures] for kind in KINDS
        }
        lines = ["", *grid(["edits", *figures], cells)]
    columns = {name: [values.get((name, scale), "") for scale in scales] for name in names}
    lines = [*grid(["", *(f"w = {scale}" for scale in scales)], columns), *lines]
    first = rows[0]
    source = (
        f"Mean over {first['scenes']} held-out scenes, {first['device']}, torch {first['torch']},"
    )
    return "\n".join([*lines, "", f"{source} commit {first['commit']}."])


def grid(head: list[str], cells: dict[str, list[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    return lines + [f"| {' | '.join([name, *row])} |" for name, row in cells.items()]


def plot(rows: Rows, path: Path) -> None:
    """Draw reconstruction and edits over the guidance scale."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for name in CURVE:
        some = [row for row in rows if row["name"] == name]
        axis = right if name == "all correct" else left
        x = [float(row["guidance"]) for row in some]
        axis.plot(x, [float(row["value"]) for row in some], "o-", label=name)
    left.set(xlabel="guidance scale w", ylabel="PSNR, dB", title="reconstruction and the rest")
    right.set(xlabel="guidance scale w", ylabel="%", ylim=(0, 102), title="changed attribute there")
    left.legend(fontsize=8)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main(results: Path, picture: Path, *pages: Path) -> None:
    """Rewrite the pages' tables and the plot."""
    for page in pages:
        text = page.read_text("utf-8")
        for name in re.findall(r"<!-- rows: (.*?) -->", text):
            body = table(read(results / f"{name}.csv"))
            pattern = rf"(<!-- rows: {re.escape(name)} -->\n).*?(<!-- end -->)"
            text = re.sub(pattern, lambda m, b=body: f"{m[1]}{b}\n{m[2]}", text, flags=re.DOTALL)
        page.write_text(text, "utf-8")
    plot(read(results / "shapes-guidance.csv"), picture)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
