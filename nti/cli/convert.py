"""`nti convert`: a saved inversion to the tensors that other programs keep, and back."""

import argparse
from functools import partial
from pathlib import Path

from nti.cli.options import Commands, add_model_options, load_model
from nti.cli.outputs import check_output, holds, keep
from nti.cli.progress import progress

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "convert",
        help="turn a saved inversion into the authors' and diffusers' x_t and uncond_embeddings, or"
        " back",
    )
    add_model_options(command)
    command.add_argument("inversion", type=Path, metavar="FILE", help="either of the two")
    command.add_argument("--prompt", help="what the image shows: those tensors do not say")
    command.add_argument("-o", "--output", type=Path, required=True, metavar="X.safetensors")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Convert in the direction that the file asks for."""
    from nti.inversion.inversion import Inversion
    from nti.inversion.published import from_published, read_published, write_published

    if not holds(options.inversion, "published"):
        needless = {"--prompt": options.prompt, "--guidance": options.guidance}
        for name, value in {**needless, "--steps": options.steps}.items():
            if value is not None:
                raise ValueError(f"{name}: got {value}, expected none: {options.inversion} says it")
        output = check_output(options, options.output, "published")
        keep(output, partial(write_published, Inversion.load(options.inversion)))
        options.terminal.wrote(output)
        return
    output = check_output(options, options.output, "inversion")
    x_t, uncond = read_published(options.inversion)
    if options.prompt is None:
        raise ValueError("--prompt: got none, expected what the image shows: the file has no words")
    if options.steps not in (None, len(uncond)):
        raise ValueError(f"--steps: got {options.steps}, expected {len(uncond)}, as the file has")
    model = load_model(options)
    with progress(options.terminal, "sampling") as callback:
        made = from_published(
            model, x_t, uncond, options.prompt, guidance_scale=options.guidance, callback=callback
        )
    keep(output, made.save)
    options.terminal.wrote(output)
