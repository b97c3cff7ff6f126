"""`evaluate`: the metrics of a run's edits, or of any pictures in PIE-Bench's layout, as tables."""

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from PIL import Image

from nti.datasets.item import Item, ManifestError
from nti.datasets.pie_bench import KINDS, PICTURES, SIZE, decode_mask, read_pie_bench
from nti.datasets.results import Results
from nti.evaluation.metrics import Case, Metrics
from nti.image import open_image
from nti.image.pasting import as_picture

__all__ = [
    "Found",
    "Row",
    "cases_of_pie_bench",
    "cases_of_run",
    "evaluate",
    "to_csv",
    "to_markdown",
]


@dataclass(frozen=True)
class Row:
    """The metrics of one edit."""

    id: str
    kind: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Found:
    """An edit that is there, and what reads its pictures."""

    id: str
    kind: str
    read: Callable[[], Case]


def cases_of_run(results: Results) -> Iterator[Found]:
    """Yield the edits of a run that are done; the second edit of `x` is `x#2`."""
    for record in results.records():
        for number, edit in enumerate(record["edits"], 1):
            name = record["id"] if number == 1 else f"{record['id']}#{number}"
            read = partial(_of_run, results, record, name, number, edit)
            yield Found(name, record["type"], read)


def _of_run(
    results: Results, record: Mapping[str, Any], name: str, number: int, edit: Mapping[str, Any]
) -> Case:
    files = ("source.png", f"edit-{number}.png", "mask.png")
    source, edited, mask = (results.picture(record["id"], file) for file in files)
    if source is None or edited is None:
        raise ValueError(f"got no {files[0 if source is None else 1]}: run the manifest again")
    return Case(name, record["type"], source, edited, mask, record["prompt"], edit["prompt"])


def cases_of_pie_bench(results: str | Path, pie_bench: str | Path) -> Iterator[Found]:
    """Yield edits that anybody wrote in the layout of PIE-Bench's evaluator.

    Args:
        results: the folder in which `annotation_images` is. Of a picture that is wider than high,
            as its authors' strips of four, the part on the right is the edit.
        pie_bench: the folder of the sources, masks and prompts.

    Raises:
        ManifestError: where there is no picture at all. Some that are missing are left out.

    """
    manifest = read_pie_bench(pie_bench)
    count = 0
    for item in manifest.items:
        path = Path(results) / str(item.written_as)
        if path.is_file():
            count += 1
            yield Found(item.id, item.kind, partial(_of_pie_bench, item, path))
    if not count:
        raise ManifestError(f"{results}: got no picture of {pie_bench} in {PICTURES}")


def _of_pie_bench(item: Item, path: Path) -> Case:
    source, edited = open_image(item.image), open_image(path)
    if source.size != (SIZE, SIZE):  # as edits are written
        source = source.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    if edited.width != edited.height:
        width, height = edited.size
        edited = edited.crop((width - SIZE, height - SIZE, width, height))
    mask = as_picture(decode_mask(item.mask)) if isinstance(item.mask, tuple) else None
    return Case(
        item.id, item.kind, source, edited, mask, item.prompt or "", item.edits[0].prompt
    )  # fmt: skip


def evaluate(
    found: Iterable[Found],
    metrics: Metrics,
    *,
    progress: Callable[[int], object] = lambda n: None,
    warn: Callable[[str], object] = lambda text: None,
) -> list[Row]:
    """Measure each edit; `progress` hears how many are done.

    One whose pictures cannot be read or compared has no figures, and `warn` hears why.
    """
    rows = []
    for each in found:
        try:
            values = metrics(each.read())
        except (ValueError, OSError) as error:
            warn(f"{each.id}: not measured: {error}")
            values = dict.fromkeys(metrics.columns, math.nan)
        rows.append(Row(each.id, each.kind, values))
        progress(len(rows))
    return rows


def to_csv(rows: Sequence[Row], method: str) -> str:
    """Return rows as PIE-Bench's evaluator writes them: `file_id`, then `METHOD|METRIC`."""
    columns = list(rows[0].values) if rows else []
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["file_id", *(f"{method}|{column}" for column in columns)])
    for row in rows:
        told = ("nan" if math.isnan(v) else repr(v) for v in row.values.values())
        writer.writerow([row.id, *told])
    return text.getvalue()


def to_markdown(rows: Sequence[Row]) -> str:
    """Return means with their 95 % intervals, of each kind of edit and of all, as a table."""
    if not rows:
        return "No edit was measured.\n"
    columns = list(rows[0].values)
    kinds = sorted({row.kind for row in rows if row.kind})
    groups = {KINDS.get(kind, kind): [r for r in rows if r.kind == kind] for kind in kinds}
    groups["all"] = list(rows)
    lines = [
        "| type | edits | " + " | ".join(name.replace("_", " ") for name in columns) + " |",
        "|---|---:|" + "---:|" * len(columns),
    ]
    for name, some in groups.items():
        cells = [_spread([row.values[column] for row in some]) for column in columns]
        lines.append(f"| {name} | {len(some)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


RESAMPLED = 2000


def _spread(values: Sequence[float]) -> str:
    """Return a mean and its bootstrap interval of 95 %, of what is finite."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    mean = fmean(finite)
    if len(finite) == 1:
        return f"{mean:.4g}"
    drawn = torch.randint(
        len(finite), (RESAMPLED, len(finite)), generator=torch.Generator().manual_seed(0)
    )
    means = torch.tensor(finite, dtype=torch.float64)[drawn].mean(dim=1).sort().values
    low, high = (float(means[int(share * RESAMPLED)]) for share in (0.025, 0.975))
    return f"{mean:.4g} ({low:.4g} .. {high:.4g})"
