"""Run the tests that hold this project against other people's code and against the equations, and
put the error that each measured into docs/fidelity.md.

    python benchmarks/fidelity.py
"""

import csv
import re
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import torch

from rows import environment

ROOT = Path(__file__).parent.parent
TESTS = (
    "tests/oracle", "tests/editing", "tests/kernels", "tests/sampling", "tests/inversion",
    "tests/test_precision.py",
)  # fmt: skip
PAGE, ROWS = ROOT / "docs" / "fidelity.md", ROOT / "benchmarks" / "results" / "fidelity.csv"
TABLE = re.compile(r"(<!-- errors -->\n).*(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Measure, then write the rows and the page's table."""
    command = [sys.executable, "-m", "pytest", "-q", *TESTS, "--errors", str(ROWS)]
    subprocess.run(command, cwd=ROOT, check=True)
    with ROWS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = ["| test | cases | dtype | largest relative error |", "|---|---:|---|---:|"]
    for (name, dtype), cases in groupby(sorted(rows, key=_test), _test):
        errors = [float(case["error"]) for case in cases]
        path, _, function = name.partition("::")
        words = function.removeprefix("test_").replace("_", " ")
        link = f"[{words}](../{path})"
        lines.append(f"| {link} | {len(errors)} | {dtype} | {max(errors):.1e} |")
    table = "\n".join([*lines, "", f"Measured on {environment()}, torch {torch.__version__}.", ""])
    text = PAGE.read_text("utf-8")
    PAGE.write_text(TABLE.sub(lambda m: m[1] + table + m[2], text), "utf-8")
    print(f"wrote {ROWS} and {PAGE}")


def _test(row: dict[str, str]) -> tuple[str, str]:
    return row["test"].split("[")[0], row["dtype"]


if __name__ == "__main__":
    main()
