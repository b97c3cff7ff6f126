"""`nti demo`: invert and edit sample images with the embedded model."""

import argparse
from functools import partial
from pathlib import Path

from nti.cli.options import Commands, add_model_options, load_model
from nti.cli.outputs import check_folder
from nti.cli.progress import progress

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "demo", help="invert and edit sample images with the embedded model"
    )
    add_model_options(command)
    command.add_argument("-o", "--output", type=Path, default=Path("nti-demo"), metavar="DIR")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the demo."""
    from nti.demo import run_demo

    folder = check_folder(options.output)
    run_demo(
        load_model(options),
        folder,
        steps=50 if options.steps is None else options.steps,
        guidance_scale=options.guidance,
        progress=partial(progress, options.terminal),
        tell=options.terminal.say,
    )
