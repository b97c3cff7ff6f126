"""`nti reconstruct`: sample an inversion again."""

import argparse
import dataclasses
from pathlib import Path

from nti.cli.options import (
    Commands,
    add_model_options,
    add_paste_back_option,
    check_output,
    load_model,
    open_inversion,
    paste_backer,
    progress,
)

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
    output = check_output(options.output)
    finish = paste_backer(options, inversion)
    model = load_model(options)
    with progress("sampling") as callback:
        image = reconstruct(model, inversion, callback=callback)
    finish(image).save(output)
    print(f"wrote {output}")
