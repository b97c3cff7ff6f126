"""`nti export`: the steps as files that a runtime loads."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nti.cli.options import Commands, add_model_options, load_model
from nti.cli.progress import progress
from nti.parsing import parse_size

if TYPE_CHECKING:
    from nti.model import StableDiffusion

__all__ = ["add"]

FORMATS = {"aoti": ("aoti",), "onnx": ("onnx",), "both": ("aoti", "onnx")}


def add(commands: Commands) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "export", help="write the steps as graphs, the weights and a manifest, for other runtimes"
    )
    add_model_options(command)
    command.add_argument(
        "--size", metavar="N|WxH", help="pixels of the image (default: the model's square)"
    )
    command.add_argument("--batch", type=int, default=1, metavar="B", help="images at once (1)")
    command.add_argument("--edits", type=int, default=1, metavar="E", help="edits at once (1)")
    command.add_argument(
        "--format", default="aoti",
        help="aoti (default): packages for libtorch on this processor; onnx; or both",
    )  # fmt: skip
    command.add_argument(
        "--check", action="store_true",
        help="compare every graph with the model on random inputs, and print the differences",
    )  # fmt: skip
    command.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Export, and check where that is asked for."""
    from nti.arguments import a_choice
    from nti.export.export import export

    formats = FORMATS[a_choice("--format", options.format, FORMATS)]
    size = parse_size(options.size)
    if size == "native":
        raise ValueError("--size: got native, expected pixels, as there is no image")
    if options.guidance is not None:
        raise ValueError(
            f"--guidance: got {options.guidance}, expected none: it is an input of the functions"
        )
    model = load_model(options)
    with progress(options.terminal, "exporting") as callback:
        export(
            model, options.output, size=size, batch=options.batch, edits=options.edits,
            steps=50 if options.steps is None else options.steps, formats=formats,
            callback=callback,
        )  # fmt: skip
    options.terminal.wrote(options.output)
    for each in formats if options.check else ():
        check(options, model, each)


def check(options: argparse.Namespace, model: "StableDiffusion", format: str) -> None:
    """Print how far each output is from the model's own; ValueError for one that is too far."""
    from nti.export.check import differences
    from nti.export.exported import load_exported

    found = list(differences(model, load_exported(options.output, format)))
    width = max(len(f"{each.function} {each.output}") for each in found)
    lines = [
        f"{f'{each.function} {each.output}':{width}}  {each.error:.1e}"
        f"{'' if each.fits else f'  more than {each.allowed:.0e}'}"
        for each in found
    ]
    options.terminal.table("\n".join([f"{format}: differences from the model", *lines]))
    if wrong := [f"{each.function} {each.output}" for each in found if not each.fits]:
        raise ValueError(
            f"--check: got other numbers in {', '.join(wrong)}, expected the model's: do not use"
            f" {options.output}, and report the versions in its manifest"
        )
