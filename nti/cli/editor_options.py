"""The options by which `nti edit` chooses an editor, and what each of them sets."""

import argparse
import os
from pathlib import Path
from typing import Any

from nti.arguments import a_choice
from nti.editing.editors import EDITORS, Editor

__all__ = ["add_editor_options", "chosen_editor", "settings_of"]

SETS = {
    "--mode": ("mode", "mode"),
    "--cross": ("cross", "cross_replace"),
    "--self": ("self_replace", "self_replace"),
    "--blend": ("blend", "blend"),
    "--subtract": ("subtract", "subtract"),
    "--blend-start": ("blend_start", "blend_start"),
    "--blend-threshold": ("blend_threshold", "blend_threshold"),
    "--reweight": ("reweight", "reweight"),
    "--start": ("start", "start"),
    "--no-replay": ("no_replay", "replay"),
    "--strength": ("strength", "strength"),
    "--seed": ("seed", "seed"),
    "--mask": ("mask", "mask"),
    "--mix": ("mix", "mix"),
    "--eta": ("eta", "eta"),
    "--embedding-steps": ("embedding_steps", "embedding_steps"),
    "--model-steps": ("model_steps", "model_steps"),
    "--iterations": ("iterations", "iterations"),
    "--rare": ("rare", "rare"),
    "--proximal": ("proximal", "proximal"),
    "--proximal-quantile": ("proximal_quantile", "proximal"),
    "--pull-below": ("pull_below", "proximal"),
    "--guidance": ("guidance", "guidance_scale"),
    "--negative-prompt": ("negative_prompt", "negative_prompt"),
}
"""Each option's place, and the setting of an editor that it is for."""

AS_GIVEN = (
    "--strength", "--seed", "--mask", "--mix", "--eta", "--embedding-steps", "--model-steps",
    "--iterations", "--rare", "--guidance", "--negative-prompt",
)  # fmt: skip
"""Those whose value is the setting."""


def add_editor_options(command: argparse.ArgumentParser) -> None:
    """Declare the editor and what some editors take, beside Prompt-to-Prompt's own options."""
    command.add_argument(
        "--editor", default="p2p", metavar="NAME",
        help="how to edit: " + "; ".join(f"{row.name}, {row.summary}" for row in EDITORS.values()),
    )  # fmt: skip
    command.add_argument(
        "--strength", type=float, metavar="F",
        help="share of the steps that are taken, from the noised or the stored image",
    )  # fmt: skip
    command.add_argument("--seed", type=int, metavar="N", help="of the noise (0)")
    command.add_argument(
        "--mask", type=_file_or_word, metavar="IMAGE|WORD",
        help="white where to edit, of the inverted image's size; or a word of its prompt",
    )  # fmt: skip
    command.add_argument(
        "--mix", type=float, metavar="F",
        help="how much of the prompt is the edited one, where the inversion learned its own",
    )  # fmt: skip
    command.add_argument(
        "--eta", type=float, metavar="F",
        help="imagic: how much of the embedding is the prompt's, the rest the image's own (0.9)",
    )  # fmt: skip
    command.add_argument(
        "--embedding-steps", type=int, metavar="N",
        help="imagic: iterations that the embedding learns (500)",
    )  # fmt: skip
    command.add_argument(
        "--model-steps", type=int, metavar="N",
        help="imagic: iterations that the copy of the UNet learns (1000)",
    )  # fmt: skip
    command.add_argument(
        "--iterations", type=int, metavar="N",
        help="unitune: iterations that the copy of the UNet learns (100)",
    )  # fmt: skip
    command.add_argument("--rare", metavar="WORDS", help="unitune: words that stand for the image")
    command.add_argument(
        "--proximal", metavar="l0|l1", help="guide only where the prompt makes a difference"
    )
    command.add_argument(
        "--proximal-quantile", type=float, metavar="F",
        help="share of the differences that are taken for none (0.7)",
    )  # fmt: skip
    command.add_argument(
        "--pull-below", type=int, metavar="T",
        help="timestep below which what is not guided goes back to the source (0: never)",
    )  # fmt: skip
    command.add_argument(
        "--negative-prompt", metavar="P",
        help="what the edits shall not show; it takes the place of the inversion's embeddings",
    )  # fmt: skip
    command.add_argument("--start", type=int, metavar="I", help="the step to start at (0)")
    command.add_argument(
        "--no-replay", action="store_true", help="compute the source's branch, as published"
    )


def _file_or_word(text: str) -> Path | str:
    return Path(text) if os.path.isfile(text) else text


def chosen_editor(options: argparse.Namespace) -> Editor:
    """Return the editor's row; ValueError for an option that it does not take, or that it lacks."""
    editor = EDITORS[a_choice("--editor", options.editor, EDITORS)]
    given = [name for name, (place, _) in SETS.items() if _is_given(options, place)]
    for name in given:
        if SETS[name][1] not in editor.takes:
            takers = [row.name for row in EDITORS.values() if SETS[name][1] in row.takes]
            raise ValueError(
                f"{name}: got --editor {editor.name}, which does not take it, expected one of"
                f" {', '.join(takers)}: leave the option out, or choose another editor"
            )
    for name, (_, setting) in SETS.items():
        if setting in editor.needs and name not in given:
            raise ValueError(f"{name}: got none, expected one, as --editor {editor.name} needs it")
    return editor


def settings_of(options: argparse.Namespace, editor: Editor) -> dict[str, Any]:
    """Return what the options set, of all editors alike; the rest has the function's default."""
    found = {
        SETS[name][1]: getattr(options, SETS[name][0])
        for name in AS_GIVEN
        if _is_given(options, SETS[name][0])
    }
    if (proximal := _proximal(options)) is not None:
        found["proximal"] = proximal
    if "original" in editor.takes and options.paste_back is not None:
        found["original"] = options.paste_back
    return found


def _proximal(options: argparse.Namespace) -> Any:
    """Return the `Proximal` that the options describe, or None."""
    from nti.editing.proximal import NORMS, Proximal

    given = {"quantile": options.proximal_quantile, "pull_below": options.pull_below}
    given = {name: value for name, value in given.items() if value is not None}
    if options.proximal is not None:
        return Proximal(a_choice("--proximal", options.proximal, NORMS), **given)
    if given:
        name = "--proximal-quantile" if "quantile" in given else "--pull-below"
        raise ValueError(f"{name}: got no --proximal, expected l0 or l1 there: give both")
    return None


def _is_given(options: argparse.Namespace, place: str) -> bool:
    value = getattr(options, place)
    return value is not None and value is not False and value != []  # 0 is a value
