"""What is wrong with items, found before the work: settings, words, masks, missing files."""

import os
from typing import Any

from nti.config import ModelConfig
from nti.datasets.addresses import is_remote
from nti.datasets.fields import Given, edit_settings, invert_settings
from nti.datasets.item import Item, Manifest, Problem
from nti.editing.editors import EDITORS
from nti.editing.plan import EditPlan
from nti.inversion.methods import METHODS
from nti.inversion.settings import InversionSettings
from nti.model import unknown_words
from nti.networks.tokenizer import Tokenizer

__all__ = ["Checked", "check"]

PLAN = (
    "mode", "cross_replace", "self_replace", "blend", "subtract", "reweight", "blend_start",
    "blend_threshold",
)  # fmt: skip
"""Settings of Prompt-to-Prompt that words decide."""

Checked = tuple[list[Item], list[tuple[Item, Problem]], list[Problem]]
"""The items that can be made, those that cannot, each with what is wrong, and what is worth a
warning."""


def check(
    manifest: Manifest, given: Given, config: ModelConfig, *, captioned: bool, strict: bool = False
) -> Checked:
    """Merge the run's settings into each item and look for what is wrong with it.

    Args:
        manifest: the items.
        given: settings of all of them.
        config: the model's.
        captioned: whether somebody says what an image without a caption shows.
        strict: count words that a small model was not trained on among what is wrong.

    """
    tokenizer = Tokenizer(config.text.context_length)
    good: list[Item] = []
    bad: list[tuple[Item, Problem]] = []
    doubts: list[Problem] = []
    for item in (each.merged(given) for each in manifest.items):
        try:
            _check_item(item, tokenizer, captioned)
            prompts = [*filter(None, [item.prompt]), *(edit.prompt for edit in item.edits)]
            if message := unknown_words(config, prompts):
                doubt = Problem(item.place, "prompt", message, item.id)
                doubts.append(doubt)
                if strict:
                    bad.append((item, doubt))
                    continue
            good.append(item)
        except (ValueError, TypeError) as error:
            field, _, told = str(error).partition(": ")
            bad.append((item, Problem(item.place, field, told or "cannot be", item.id)))
    return good, bad, doubts


def _check_item(item: Item, tokenizer: Tokenizer, captioned: bool) -> None:
    """Raise ValueError, its message beginning with the field, for what cannot be made."""
    if not is_remote(item.image) and not os.path.isfile(item.image):
        raise ValueError(f"image: got {item.image}, where there is no file")
    if item.prompt is None and not captioned:
        raise ValueError("prompt: got none, expected what the image shows; or give a captioner")
    settings, _ = invert_settings(item.settings)
    for edit in item.edits:
        name, values = edit_settings(edit.settings)
        _check_editor(item, name, values, settings)
        if name == "p2p" and item.prompt is not None:
            words = {key: value for key, value in values.items() if key in PLAN}
            _check_words(tokenizer, item.prompt, edit.prompt, settings.steps, words)


def _check_editor(
    item: Item, name: str, values: dict[str, Any], settings: InversionSettings
) -> None:
    editor = EDITORS[name]
    if "mask" in editor.needs and item.mask is None and "mask" not in values:
        raise ValueError(f"mask: got none, expected one, as {name} needs it")
    if editor.trajectory and not METHODS[settings.method].sampled:
        raise ValueError(
            f"editor: got {name}, which needs a trajectory, for {settings.method}, which has none"
        )


def _check_words(
    tokenizer: Tokenizer, source: str, edited: str, steps: int, words: dict[str, Any]
) -> None:
    """Raise ValueError that begins with the setting whose words do not fit the prompts."""
    for name in ("edits", *words):
        alone = {name: words[name]} if name in words else {}
        try:
            EditPlan.create(tokenizer, source, edited, steps=steps, **alone)
        except ValueError as error:
            told = str(error)
            raise ValueError(told if told.startswith(f"{name}: ") else f"{name}: {told}") from error
