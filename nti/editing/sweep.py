"""One picture of an edit at several values of one setting."""

from collections.abc import Iterable, Mapping, Set
from typing import Any

from PIL import Image

from nti.arguments import a_callable, a_choice, a_text, a_whole_number, shown
from nti.contact_sheet import contact_sheet
from nti.editing.control_schedule import CrossWindow, Window
from nti.editing.edit_rows import check_objects
from nti.editing.local_blend import START, THRESHOLD, BlendWords
from nti.editing.plan import EditPlan
from nti.editing.prompt_to_prompt import edit_latents
from nti.editing.result import decoded
from nti.errors import Callback, part_of
from nti.inversion.inversion import Inversion
from nti.model import StableDiffusion

__all__ = ["OVER", "sweep"]

OVER = ("reweight", "cross_replace", "self_replace", "guidance_scale")
"""The settings of `nti.edit` that a sweep may go over."""

PER_EDIT = ("reweight", "cross_replace", "self_replace")
"""Those of which each edit of a batch has its own; of the guidance scale a batch has one."""

COLUMNS = 6

NO_LISTS = (str, bytes, bytearray, Mapping, Set)
"""What can be gone through, and is no list of numbers all the same."""


def sweep(
    model: StableDiffusion,
    inversion: Inversion,
    prompt: str,
    *,
    over: str,
    values: Iterable[Window],
    word: str | None = None,
    mode: str = "auto",
    cross_replace: CrossWindow = 0.8,
    self_replace: Window = 0.5,
    blend: BlendWords | None = None,
    subtract: BlendWords | None = None,
    reweight: Mapping[str, float] | None = None,
    blend_start: float = START,
    blend_threshold: float = THRESHOLD,
    guidance_scale: float | None = None,
    negative_prompt: str | None = None,
    at_once: int = 4,
    cell: int = 192,
    callback: Callback | None = None,
) -> Image.Image:
    """Draw the source, and an edit by Prompt-to-Prompt for each value of one setting.

    Args:
        model: the model that the inversion was made with.
        inversion: of the source image.
        prompt: the edited prompt.
        over: the setting, one of `OVER`; `reweight` is the factor of one word.
        values: of the setting, one an edit: factors, windows or guidance scales.
        word: of the edited prompt, whose factor `over="reweight"` goes over; None for the others.
        mode: see `nti.edit`, as for all settings that follow. `over` takes the place of its own.
        cross_replace: see there.
        self_replace: see there.
        blend: see there.
        subtract: see there.
        reweight: see there.
        blend_start: see there.
        blend_threshold: see there.
        guidance_scale: see there.
        negative_prompt: see there.
        at_once: edits in one batch, where each may have its own value.
        cell: side of a picture on the sheet in pixels.
        callback: see `nti.errors.Callback`; each batch takes T steps.

    Returns:
        A sheet of the pictures, each labelled with its value, the source first.

    Raises:
        ValueError: settings that do not fit, with what was got and expected.
        NotFiniteError: latents that overflow.
        Stopped: by the callback.

    """
    check_objects(model, inversion)
    prompt, listed = a_text("prompt", prompt), _listed(values)
    over, word = _checked_over(over, word)
    size = a_whole_number("at_once", at_once, 1) if over in PER_EDIT else 1
    cell = a_whole_number("cell", cell, 1, 4096)
    a_callable("callback", callback)
    groups = [listed[first : first + size] for first in range(0, len(listed), size)]

    def planned(group: list[Any]) -> EditPlan:
        weights: Any = reweight
        if word is not None:
            weights = [{**(reweight or {}), word: factor} for factor in group]
        return EditPlan.create(
            model.tokenizer, inversion.prompt, [prompt] * len(group), steps=inversion.steps,
            mode=mode, cross_replace=group if over == "cross_replace" else cross_replace,
            self_replace=group if over == "self_replace" else self_replace, blend=blend,
            subtract=subtract, reweight=weights, blend_start=blend_start,
            blend_threshold=blend_threshold,
        )  # fmt: skip

    plans = [planned(group) for group in groups]  # what cannot be shows before the work
    cells: list[tuple[Image.Image, str]] = []
    for number, (group, plan) in enumerate(zip(groups, plans, strict=True)):
        edited = edit_latents(
            model, inversion, plan, negative_prompt=negative_prompt,
            guidance_scale=group[0] if over == "guidance_scale" else guidance_scale,
            callback=part_of(callback, number * plan.steps, len(plans) * plan.steps),
        )  # fmt: skip
        result = decoded(model, edited)
        cells = cells or [(result.source, inversion.prompt)]
        labels = [_label(word or over, value) for value in group]
        cells += zip(result.images, labels, strict=True)
    rows = [cells[first : first + COLUMNS] for first in range(0, len(cells), COLUMNS)]
    return contact_sheet(rows, cell=cell, title=prompt)


def _checked_over(over: str, word: str | None) -> tuple[str, str | None]:
    """Return both; ValueError for no setting of a sweep, or one that goes without its word."""
    over = a_choice("over", over, OVER)
    if word is None and over == "reweight":
        raise ValueError("word: got none, expected the word of the edited prompt to weigh")
    if word is not None and over != "reweight":
        raise ValueError(
            f"word: got {shown(word)}, expected none to go over {over}: only reweight has one"
        )
    return over, None if word is None else a_text("word", word)


def _listed(values: Iterable[Window]) -> list[Any]:
    """Return the values; ValueError for none."""
    iterable = isinstance(values, Iterable) and not isinstance(values, NO_LISTS)
    if not (iterable and (listed := list(values))):
        raise ValueError(f"values: got {shown(values)}, expected one number or more, one an edit")
    return listed


def _label(name: str, value: Window) -> str:
    if isinstance(value, tuple):
        return f"{name} {' to '.join(f'{x:g}' for x in value)}"
    return f"{name} {value:g}"
