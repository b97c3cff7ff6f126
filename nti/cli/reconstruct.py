"""`nti reconstruct`: sample an inversion again."""

import argparse
import dataclasses
from functools import partial
from pathlib import Path

from nti.cli.options import (
    Commands,
    add_model_options,
    add_paste_back_option,
    load_model,
    open_inversion,
    paste_backer,
)
from nti.cli.outputs import check_output, keep
from nti.cli.progress import progress
from nti.files import write_picture

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Declare the command."""
    command = commands.add_parser("reconstruct", help="sample an inversion again")
    add_model_options(command)
    command.add_argument("inversion", type=Path, metavar="X.nti.safetensors")
    add_paste_back_option(command)
    command.add_argument("-o", "--output", type=Path, required=True, metavar="PNG")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Sample and write the picture."""
    from nti.inversion.sampling import reconstruct

    inversion = open_inversion(options)
    if options.guidance is not None:
        inversion = dataclasses.replace(inversion, guidance_scale=options.guidance)
    output = check_output(options, options.output, "picture")
    finish = paste_backer(options, inversion)
    model = load_model(options)
    with progress(options.terminal, "sampling") as callback:
        image = reconstruct(model, inversion, callback=callback)
    keep(output, partial(write_picture, finish(image, None)))
    options.terminal.wrote(output)
