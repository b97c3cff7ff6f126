"""Edits that change nothing that can be seen, and why."""

import warnings

from torch import Tensor

from nti.editing.plan import EditPlan
from nti.networks.tokenizer import clean

__all__ = ["warn_of_unchanged"]

NOTICEABLE = 2.0
"""Of 255 grey levels: who looks at two pictures sees no difference below."""


def warn_of_unchanged(plan: EditPlan, pixels: Tensor, masks: Tensor | None) -> None:
    """Warn of each edit whose picture is the source's, with what to try.

    Args:
        plan: of E edits.
        pixels: (1 + E, 3, H, W) in [-1, 1], the source's picture first.
        masks: of `EditedLatents`.

    """
    largest = (pixels[1:] - pixels[:1]).abs().amax(dim=(1, 2, 3)) * 127.5
    for number, (prompt, levels) in enumerate(zip(plan.prompts, largest.tolist(), strict=True)):
        if levels < NOTICEABLE:
            empty = masks is not None and not bool(masks[-1, number].any())
            warnings.warn(
                f"edit: {prompt!r} changes the picture by {levels:.2g} of 255 grey levels at most:"
                f" {_reason(plan, number, empty)}",
                stacklevel=4,
            )


def _reason(plan: EditPlan, number: int, empty: bool) -> str:
    if empty:
        return (
            "the regions of its blend words are empty, or subtracted: choose other words, or"
            " another blend_threshold"
        )
    if clean(plan.prompts[number]) == clean(plan.source):
        return "its prompt is the source's: change a word, or weigh one by reweight"
    controls = plan.controls
    if controls.inject_self[number] == (0, plan.steps) and not controls.own_mix[:, number].any():
        return "its attention is the source's at every step: lower cross_replace and self_replace"
    return "lower cross_replace, self_replace or start, or weigh a word by reweight"
