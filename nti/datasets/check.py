"""What is wrong with items, found before the work: settings, words, masks, missing files."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from nti.config import ModelConfig
from nti.datasets.addresses import is_remote
from nti.datasets.fields import Given, edit_settings, invert_settings
from nti.datasets.item import Edit, Item, Manifest, Problem
from nti.datasets.work import Work, read_work
from nti.editing.editors import EDITORS
from nti.editing.plan import EditPlan
from nti.image import open_image
from nti.inversion.methods import METHODS
from nti.inversion.settings import InversionSettings
from nti.inversion.source import fitted_size
from nti.model import unknown_words
from nti.networks.tokenizer import Tokenizer

__all__ = ["Checked", "check"]

PLAN = (
    "mode", "cross_replace", "self_replace", "blend", "subtract", "reweight", "blend_start",
    "blend_threshold",
)  # fmt: skip
"""Settings of Prompt-to-Prompt that words decide."""


@dataclass
class Checked:
    """What a manifest's items are, once the run's settings are merged into them."""

    done: list[Item] = field(default_factory=list)
    """Made by an earlier run."""
    good: list[Item] = field(default_factory=list)
    """To be made."""
    bad: list[tuple[Item, Problem]] = field(default_factory=list)
    """Those that cannot be made, each with what is wrong."""
    doubts: list[Problem] = field(default_factory=list)
    """What is worth a warning."""

    @property
    def items(self) -> list[Item]:
        """All of them that are made or can be, in no order."""
        return [*self.done, *self.good]


def check(
    manifest: Manifest,
    given: Given,
    config: ModelConfig,
    *,
    captioned: bool,
    strict: bool = False,
    is_done: Callable[[Item], bool] = lambda item: False,
) -> Checked:
    """Merge the run's settings into each item and look for what is wrong with it.

    Args:
        manifest: the items.
        given: settings of all of them.
        config: the model's.
        captioned: whether somebody says what an image without a caption shows.
        strict: read images and masks, too, and count words that a small model was not trained on
            among what is wrong.
        is_done: whether an item was made by an earlier run: nothing is wrong with that any more.

    """
    checker = _Checker(config, captioned, strict)
    for item in manifest.items:
        whole = item
        try:
            whole = item.merged(given)
            if is_done(whole):
                checker.found.done.append(whole)
                continue
            whole = checker.suggestions(whole)
            checker.settings(whole)
            if checker.words(whole):
                checker.found.good.append(whole)
        except (ValueError, TypeError, OSError) as error:
            name, _, told = str(error).partition(": ")
            problem = Problem(item.place, name, told or "cannot be", item.id)
            checker.found.bad.append((whole, problem))
    return checker.found


@dataclass
class _Checker:
    config: ModelConfig
    captioned: bool
    strict: bool
    found: Checked = field(default_factory=Checked)

    def __post_init__(self) -> None:
        self.tokenizer = Tokenizer(self.config.text.context_length)

    def settings(self, item: Item) -> None:
        """Raise ValueError, its message beginning with the field, for what cannot be made."""
        for name, address in (("image", item.image), ("mask", item.mask)):
            if isinstance(address, str) and not is_remote(address) and not os.path.isfile(address):
                raise ValueError(f"{name}: got {address}, where there is no file")
        if item.prompt is None and not self.captioned:
            raise ValueError("prompt: got none, expected what the image shows; or give a captioner")
        settings, places = invert_settings(item.settings)
        fitted_size(self.config, (8, 8), places.get("size"))
        for edit in item.edits:
            name, values = edit_settings(edit.settings)
            _check_editor(item, name, values, settings)
            if name == "p2p" and item.prompt is not None:
                self._plan(item.prompt, edit, values, settings.steps)
        if self.strict:
            _check_files(read_work(item))

    def suggestions(self, item: Item) -> Item:
        """Return the item without what its manifest's layout suggests and its words do not fit."""
        edits = []
        for edit in item.edits:
            kept = edit
            for name in edit.defaults if item.prompt is not None else ():
                words = {name: edit_settings({name: edit.defaults[name]})[1][name]}
                try:
                    self._plan(str(item.prompt), Edit(edit.prompt), words, 1)
                except ValueError as error:
                    told = f"{str(error).partition(': ')[2]}: left out"
                    self.found.doubts.append(Problem(item.place, name, told, item.id))
                    rest = {n: value for n, value in kept.settings.items() if n != name}
                    kept = replace(kept, settings=rest)
            edits.append(kept)
        return replace(item, edits=tuple(edits))

    def words(self, item: Item) -> bool:
        """Tell of words that the model was not trained on; False where that counts as wrong."""
        named = [("prompt", item.prompt or "")]
        named += [("edited_prompts", edit.prompt) for edit in item.edits]
        doubts = [
            Problem(item.place, name, message, item.id)
            for name, prompt in named
            if (message := unknown_words(self.config, [prompt]))
        ]
        if doubts and self.strict:
            self.found.bad.append((item, doubts[0]))
            return False
        self.found.doubts += doubts
        return True

    def _plan(self, source: str, edit: Edit, values: Given, steps: int) -> None:
        """Raise ValueError that begins with the setting whose words do not fit the prompts."""
        words = [name for name in PLAN if name in values]
        for name in ("edits", *words):
            alone = {name: values[name]} if name in words else {}
            try:
                EditPlan.create(self.tokenizer, source, edit.prompt, steps=steps, **alone)
            except ValueError as error:
                told = str(error)
                begins = told.startswith(f"{name}: ")
                raise ValueError(told if begins else f"{name}: {told}") from error


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


def _check_files(work: Work) -> None:
    """Raise ValueError for an image or a mask that cannot be read, or a mask of another size."""
    if work.error:
        raise ValueError(work.error)
    image = open_image(work.image)
    if work.mask is None:
        return
    try:
        mask = open_image(work.mask)
    except ValueError as error:
        raise ValueError(f"mask: {str(error).removeprefix('image: ')}") from error
    if mask.size != image.size:
        raise ValueError(
            f"mask: got {mask.width}x{mask.height} pixels, expected {image.width}x{image.height},"
            " as the image has"
        )
