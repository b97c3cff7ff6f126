"""`nti generate`: a picture from a seed, saved as an inversion that is edited like any other."""

import argparse
from functools import partial
from pathlib import Path

from nti.cli.options import Commands, add_model_options, load_model
from nti.cli.outputs import check_output, keep
from nti.cli.progress import progress
from nti.files import write_picture
from nti.parsing import parse_size

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "generate", help="make a picture from a seed, to be edited like an inverted one"
    )
    add_model_options(command)
    command.add_argument("prompt", metavar="PROMPT", help="what the picture shall show")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise (0)")
    command.add_argument(
        "--negative-prompt", default="", metavar="P", help="what it shall not show"
    )
    command.add_argument("--size", metavar="N|WxH", help="pixels (default: the model's square)")
    command.add_argument(
        "--image", dest="picture", type=Path, metavar="PNG", help="where to put the picture"
    )
    command.add_argument("-o", "--output", type=Path, required=True, metavar="X.nti.safetensors")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Sample, save, and decode where a picture is asked for."""
    from nti.image import to_pil
    from nti.inversion.generate import generate

    output = check_output(options, options.output, "inversion")
    if options.picture is not None:
        check_output(options, options.picture, "picture")
    size = parse_size(options.size)
    if isinstance(size, str):
        raise ValueError("--size: got 'native', but there is no image: expected pixels")
    model = load_model(options)
    with progress(options.terminal, "sampling") as callback:
        made = generate(
            model,
            options.prompt,
            seed=options.seed,
            steps=50 if options.steps is None else options.steps,
            guidance_scale=options.guidance,
            negative_prompt=options.negative_prompt,
            size=size,
            callback=callback,
        )
    keep(output, made.save)
    options.terminal.wrote(output)
    if options.picture is not None:
        image = to_pil(model.decode_latent(made.latents[-1:]))[0]
        keep(options.picture, partial(write_picture, image))
        options.terminal.wrote(options.picture)
