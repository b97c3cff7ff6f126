"""Write the tables of docs/datasets.md and docs/scale.md from their rows.

python benchmarks/datasets_report.py
"""

import csv
import re
from pathlib import Path

from rows import Row, read_rows

ROOT = Path(__file__).parent.parent
RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs"

SHOWN = {
    "reconstruction, dB": "reconstruction, dB",
    "psnr_unedit_part": "PSNR unedited",
    "ssim_unedit_part": "SSIM unedited",
    "clip_similarity_target_image": "CLIP",
}
"""The metrics of the world's run, and what they are called."""


def main() -> None:
    """Rewrite the tables."""
    rows = read_rows(RESULTS / "datasets.csv")
    grown = [row for row in rows if row.case.endswith(" items")]
    others = [row for row in rows if row not in grown]
    _place(DOCS / "datasets.md", "datasets", [*_world(), "", *_table(others)])
    _place(DOCS / "scale.md", "growth", [*_table(grown), "", *_overhead(rows)])


def _place(page: Path, name: str, lines: list[str]) -> None:
    text = page.read_text("utf-8")
    place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
    body = "\n".join(lines)
    page.write_text(place.sub(lambda m: f"{m[1]}{body}\n{m[2]}", text), "utf-8")


def _table(rows: list[Row]) -> list[str]:
    memory = any(row.peak_mib for row in rows)
    lines = ["| | an item | |" + (" peak MiB |" if memory else "")]
    lines.append("|---|---:|---:|" + ("---:|" if memory else ""))
    for row in rows:
        seconds = f"{row.p50_ms / 1e3:.3g} s" if row.p50_ms >= 1000 else f"{row.p50_ms:.3g} ms"
        cells = [f"{row.provider}, {row.case}", seconds, f"{row.quality:.3g} {row.unit}"]
        cells += [f"{row.peak_mib:,.0f}" if row.peak_mib else ""] if memory else []
        lines.append(f"| {' | '.join(cells)} |")
    sources = sorted({f"{r.device}, torch {r.torch}, commit {r.commit}" for r in rows})
    command = "`python benchmarks/datasets.py single batches cluster growth --out FILE`"
    return [*lines, "", f"By {command}: {'; '.join(sources)}."]


def _overhead(rows: list[Row]) -> list[str]:
    """Say what share of an item with optimization goes to all that is beside it."""
    beside = max(row.p50_ms for row in rows if row.provider == "of it, beside the work")
    (item,) = (r.p50_ms for r in rows if r.provider == "nti run" and "batches of 4" in r.case)
    return [
        f"Of an item of `nti run` in batches of four ([data sets](datasets.md)), which takes"
        f" {item / 1e3:.1f} s, {beside:.1f} ms are {100 * beside / item:.2g} %."
    ]


def _world() -> list[str]:
    with (RESULTS / "world-run.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    kinds = sorted({row["kind"] for row in rows}, key=lambda kind: (kind == "all", kind))
    lines = [f"| 200 held-out scenes | edits | {' | '.join(SHOWN.values())} |"]
    lines.append(f"|---|---:|{'---:|' * len(SHOWN)}")
    for kind in kinds:
        mine = {row["name"]: row for row in rows if row["kind"] == kind}
        cells = [
            f"{float(mine[n]['value']):.4g} ({float(mine[n]['low']):.4g} .."
            f" {float(mine[n]['high']):.4g})"
            for n in SHOWN
        ]
        lines.append(f"| {kind} | {mine['reconstruction, dB']['items']} | {' | '.join(cells)} |")
    first = rows[0]
    return [
        *lines, "",
        f"`{first['method']}`, T = {first['steps']}, by the commands of"
        f" `benchmarks/shapes/world_run.py`: {first['device']}, torch {first['torch']}, commit"
        f" {first['commit']}. Means with their 95 % intervals.",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
