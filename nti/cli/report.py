"""`nti report`: an inversion and its edits as one page to look at."""

import argparse
from functools import partial
from pathlib import Path

from nti.cli.options import (
    Commands,
    add_edit_options,
    add_model_options,
    load_model,
    open_inversion,
    plan_of,
    refuse_edits_alone,
)
from nti.cli.outputs import check_output, keep
from nti.cli.progress import progress
from nti.files import write_file

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Declare the command."""
    command = commands.add_parser("report", help="write a page that shows an inversion and edits")
    add_model_options(command)
    command.add_argument("inversion", type=Path, metavar="X.nti.safetensors")
    command.add_argument(
        "--prompt", action="append", default=[], help="an edited prompt; may be given again"
    )
    command.add_argument(
        "--image", type=Path, metavar="IMAGE",
        help="what was inverted, to be compared with (default: the autoencoder's picture of it)",
    )  # fmt: skip
    add_edit_options(command)
    command.add_argument("-o", "--output", type=Path, required=True, metavar="HTML")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Write the page."""
    from nti.image import fit_image, match_original
    from nti.report.page import make_report

    inversion = open_inversion(options)
    output = check_output(options, options.output, "report")
    if options.guidance is not None:
        raise ValueError(
            f"--guidance: got {options.guidance}, expected none, as a report is of the guidance"
            f" scale that {options.inversion} was made with: leave the option out"
        )
    refuse_edits_alone(options, "which they are about")
    photograph = None
    if options.image is not None:
        if inversion.placement is None:
            raise ValueError(
                f"--image: got an inversion that does not say where in an image it lay, expected"
                f" {options.inversion} to be of an image's file: leave the option out"
            )
        photograph = fit_image(*match_original(options.image, inversion.placement))
    model = load_model(options)
    plan = plan_of(options, model, inversion) if options.prompt else None
    with progress(options.terminal, "looking") as callback:
        page = make_report(model, inversion, plan, photograph=photograph, callback=callback)
    keep(output, partial(_write, page))
    options.terminal.wrote(output, f"{len(page.encode()) / 1e6:.1f} MB")


def _write(page: str, path: Path) -> None:
    write_file(path, page.encode())
