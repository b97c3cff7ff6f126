"""`nti edit`: edit an inverted image by its words."""

import argparse
from functools import partial
from pathlib import Path

from nti.cli.options import (
    Commands,
    add_edit_options,
    add_model_options,
    add_paste_back_option,
    load_model,
    open_inversion,
    paste_backer,
    plan_of,
)
from nti.cli.outputs import LATENTS, check_output, keep, keep_each, numbered
from nti.cli.progress import progress
from nti.files import write_file, write_picture

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Declare the command."""
    command = commands.add_parser("edit", help="edit an inverted image by its words")
    add_model_options(command)
    command.add_argument("inversion", type=Path, metavar="X.nti.safetensors")
    command.add_argument(
        "--prompt", action="append", required=True, help="an edited prompt; may be given again"
    )
    add_edit_options(command)
    command.add_argument(
        "--negative-prompt",
        metavar="P",
        help="what the edits shall not show; it takes the place of the inversion's embeddings",
    )
    command.add_argument(
        "--start", type=int, default=0, metavar="I", help="the step to start at (0)"
    )
    command.add_argument(
        "--no-replay", action="store_true", help="compute the source's branch, as published"
    )
    add_paste_back_option(command)
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="PNG",
        help="with several prompts: PNG-1, PNG-2, ...; a name that ends in .safetensors receives"
        " the latents of all edits instead",
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Edit, and write the pictures or the latents."""
    from safetensors.torch import save

    from nti.editing.prompt_to_prompt import decode_edits, edit_latents

    inversion = open_inversion(options)
    latents = options.output.suffix.lower() == LATENTS
    paths = [options.output] if latents else numbered(options.output, len(options.prompt))
    for path in paths:
        check_output(options, path, "picture", "latents")
    if latents and options.paste_back is not None:
        raise ValueError(
            f"--paste-back: got {options.output}, expected a picture's name: leave one out"
        )
    finish = paste_backer(options, inversion)
    model = load_model(options)
    plan = plan_of(options, model, inversion)
    with progress(options.terminal, "editing") as callback:
        edited = edit_latents(
            model,
            inversion,
            plan,
            replay=not options.no_replay,
            guidance_scale=options.guidance,
            negative_prompt=options.negative_prompt,
            start=options.start,
            callback=callback,
        )
    modes = [alignment.mode for alignment in plan.alignments]
    if latents:
        data = save({"latents": edited.latents[-1].cpu().contiguous()})
        keep(options.output, lambda path: write_file(path, data))
        options.terminal.wrote(options.output, f"{len(modes)} latents")
        return
    images = decode_edits(model, plan, edited).images
    errors = keep_each(
        {
            path: partial(write_picture, finish(image))
            for path, image in zip(paths, images, strict=True)
        }
    )
    for path, mode, prompt in zip(paths, modes, plan.prompts, strict=True):
        if path not in errors:
            options.terminal.wrote(path, f"{mode}: {prompt}")
    if errors:
        raise OSError("; ".join(str(error) for error in errors.values()))
