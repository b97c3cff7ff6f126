"""`nti inpaint`: repaint part of an image with an inpainting checkpoint."""

import argparse
from functools import partial
from pathlib import Path

from nti.cli.options import Commands, add_model_options, load_model
from nti.cli.outputs import check_output, keep_each, numbered
from nti.cli.progress import progress
from nti.files import write_picture
from nti.parsing import parse_size

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "inpaint", help="repaint part of an image with an inpainting checkpoint"
    )
    add_model_options(command)
    command.add_argument("image", type=Path, metavar="IMAGE")
    command.add_argument(
        "--mask",
        type=Path,
        required=True,
        metavar="FILE",
        help="an image of the same size, white where it is repainted",
    )
    command.add_argument(
        "--prompt",
        action="append",
        required=True,
        help="what the whole image shall show; may be given again",
    )
    command.add_argument(
        "--negative-prompt", default="", metavar="P", help="what it shall not show"
    )
    command.add_argument(
        "--size", metavar="N|WxH|native", help="pixels (default: the model's square)"
    )
    command.add_argument(
        "--fit", default="crop", help="how another shape is brought to it: crop, pad or stretch"
    )
    command.add_argument(
        "--strength", type=float, default=1.0, metavar="F",
        help="share of the steps that are sampled (1); below 1 the hole begins as the image is",
    )  # fmt: skip
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise (0)")
    command.add_argument(
        "--keep-outside",
        action="store_true",
        help="leave the pixels outside the mask exactly as they are, even where a seam shows",
    )
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="PNG",
        help="with several prompts: PNG-1, PNG-2, ...",
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Repaint, and write the pictures."""
    from nti.editing.inpaint import inpaint

    paths = numbered(options.output, len(options.prompt))
    for path in paths:
        check_output(options, path, "picture")
    size = parse_size(options.size)
    model = load_model(options)
    with progress(options.terminal, "inpainting") as callback:
        made = inpaint(
            model,
            options.image,
            options.mask,
            options.prompt,
            size=size,
            fit=options.fit,
            steps=50 if options.steps is None else options.steps,
            guidance_scale=options.guidance,
            negative_prompt=options.negative_prompt,
            strength=options.strength,
            seed=options.seed,
            keep_outside=options.keep_outside,
            callback=callback,
        )
    errors = keep_each(
        {
            path: partial(write_picture, image)
            for path, image in zip(paths, made.images, strict=True)
        }
    )
    for path, prompt in zip(paths, options.prompt, strict=True):
        if path not in errors:
            options.terminal.wrote(path, prompt)
    if errors:
        raise OSError("; ".join(str(error) for error in errors.values()))
