"""`nti evaluate`: measure the edits of a run, or pictures in PIE-Bench's layout."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nti.cli.options import Commands
from nti.cli.progress import progress

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nti.datasets.addresses import Folder
    from nti.datasets.evaluate import Found
    from nti.evaluation.clip import Clip
    from nti.evaluation.metrics import Metrics

__all__ = ["add"]

CSV, TABLE = "metrics.csv", "metrics.md"


def add(commands: Commands) -> None:
    """Declare the command."""
    command = commands.add_parser("evaluate", help="measure the edits of a run")
    command.add_argument(
        "folder", metavar="DIR", help="of `nti run`, or with annotation_images in it"
    )
    command.add_argument(
        "--pie-bench", type=Path, metavar="DIR",
        help="PIE-Bench's folder, where DIR holds pictures that another program wrote",
    )  # fmt: skip
    command.add_argument(
        "--lpips", type=Path, metavar="FILE", help="torchvision's weights of SqueezeNet 1.1"
    )
    command.add_argument("--dino", type=Path, metavar="FILE", help="DINO's weights of ViT-B/8")
    command.add_argument(
        "--clip", type=Path, metavar="PATH",
        help="CLIP as open_clip saves it, a folder or a file (default with the embedded model: a"
        " small CLIP of its world)",
    )  # fmt: skip
    command.add_argument(
        "--clip-model", metavar="NAME", help="of a file: open_clip's name of its architecture"
    )
    command.add_argument(
        "--as-published", action="store_true",
        help="repeat the defects of PIE-Bench's evaluator, for figures that can be compared",
    )  # fmt: skip
    command.add_argument(
        "--name", metavar="KEY", help="of the columns (default: the run's method and editor)"
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Measure, print the table and write both files."""
    from nti.datasets.addresses import open_folder
    from nti.datasets.evaluate import evaluate, to_csv, to_markdown

    folder = open_folder(options.folder)
    cases, name, world = _cases(options, folder)
    metrics = _metrics(options, world)
    if metrics.missing:
        options.terminal.warn(
            f"{', '.join(metrics.missing)}: not measured, as there are no weights: give --lpips,"
            " --dino or --clip"
        )
    with progress(options.terminal, "measuring") as shown:
        rows = evaluate(
            cases, metrics, progress=lambda done: shown(done, done), warn=options.terminal.warn
        )
    table = to_markdown(rows)
    options.terminal.table(table.rstrip())
    for file, text in ((CSV, to_csv(rows, name)), (TABLE, table)):
        folder.write(file, text.encode())
        options.terminal.wrote(f"{options.folder.rstrip('/')}/{file}")


def _cases(options: argparse.Namespace, folder: "Folder") -> "tuple[Iterable[Found], str, bool]":
    """Return what to measure, what the columns are called, and whether it is the small world."""
    from nti.datasets.evaluate import cases_of_pie_bench, cases_of_run
    from nti.datasets.results import Results

    if options.pie_bench is not None:
        name = options.name or Path(options.folder).name
        return cases_of_pie_bench(options.folder, options.pie_bench), name, False
    results = Results(folder)
    asked = results.run()
    settings = asked.get("settings", {})
    usual = f"{settings.get('method', 'null-text')}+{settings.get('editor', 'p2p')}"
    return cases_of_run(results), options.name or usual, asked.get("model") == "shapes"


def _metrics(options: argparse.Namespace, world: bool) -> "Metrics":
    from nti.evaluation.metrics import Metrics
    from nti.evaluation.weights import dino, lpips

    return Metrics(
        lpips=None
        if options.lpips is None
        else lpips(options.lpips, spatial=not options.as_published),
        dino=None if options.dino is None else dino(options.dino),
        clip=_clip(options, world),
        as_published=options.as_published,
    )


def _clip(options: argparse.Namespace, world: bool) -> "Clip | None":
    from nti.evaluation.clip import load_clip

    if options.clip is None and not world:
        return None
    return load_clip(options.clip, options.clip_model)
