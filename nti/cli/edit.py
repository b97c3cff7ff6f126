"""`nti edit`: edit an inverted image by its words."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nti.cli.editor_options import add_editor_options, chosen_editor, settings_of
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
from nti.editing.editors import Editor
from nti.files import write_file, write_picture

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from nti.errors import Callback
    from nti.image import MaskLike
    from nti.inversion.inversion import Inversion
    from nti.model import StableDiffusion

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
    add_editor_options(command)
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

    inversion = open_inversion(options)
    editor = chosen_editor(options)
    latents = options.output.suffix.lower() == LATENTS
    paths = [options.output] if latents else numbered(options.output, len(options.prompt))
    for path in paths:
        check_output(options, path, "picture", "latents")
    if latents and options.paste_back is not None:
        raise ValueError(
            f"--paste-back: got {options.output}, expected a picture's name: leave one out"
        )
    finish = paste_backer(options, inversion)
    edit = _prompt_to_prompt if editor.name == "p2p" else _by_editor
    model = load_model(options)
    with progress(options.terminal, "editing") as callback:
        edited, images, notes, mask = edit(options, editor, model, inversion, callback)
    if latents:
        data = save({"latents": edited.cpu().contiguous()})
        keep(options.output, lambda path: write_file(path, data))
        options.terminal.wrote(options.output, f"{len(notes)} latents")
        return
    errors = keep_each(
        {
            path: partial(write_picture, finish(image, mask))
            for path, image in zip(paths, images(), strict=True)
        }
    )
    for path, note in zip(paths, notes, strict=True):
        if path not in errors:
            options.terminal.wrote(path, note)
    if errors:
        raise OSError("; ".join(str(error) for error in errors.values()))


Edited = tuple["Tensor", "Callable[[], list[Image.Image]]", list[str], "MaskLike | None"]
"""The edits' latents (E, 4, h, w), what gives their pictures, a note on each, and the mask outside
of which they keep the pixels of the image."""


def _prompt_to_prompt(
    options: argparse.Namespace,
    editor: Editor,
    model: "StableDiffusion",
    inversion: "Inversion",
    callback: "Callback",
) -> Edited:
    """Edit in two parts, as latents need no decoding and a plan says how words were aligned."""
    from nti.editing.prompt_to_prompt import decode_edits, edit_latents

    plan = plan_of(options, model, inversion)
    edited = edit_latents(
        model,
        inversion,
        plan,
        replay=not options.no_replay,
        start=0 if options.start is None else options.start,
        callback=callback,
        **settings_of(options, editor),
    )
    pairs = zip(plan.alignments, plan.prompts, strict=True)
    notes = [f"{alignment.mode}: {prompt}" for alignment, prompt in pairs]
    return edited.latents[-1], lambda: decode_edits(model, plan, edited).images, notes, None


def _by_editor(
    options: argparse.Namespace,
    editor: Editor,
    model: "StableDiffusion",
    inversion: "Inversion",
    callback: "Callback",
) -> Edited:
    """Edit by another row of the table."""
    settings = settings_of(options, editor)
    result = editor.function(model, inversion, options.prompt, callback=callback, **settings)
    notes = [f"{editor.name}: {prompt}" for prompt in options.prompt]
    # What was drawn is finer than what the editor made of it at the inverted size.
    mask = options.mask if isinstance(options.mask, Path) else result.mask
    return result.latents[-1], lambda: result.images, notes, mask
