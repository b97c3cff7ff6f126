"""An `EditPlan`: everything about an edit that its words decide, checked once and used often."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nti.arguments import a_text, a_whole_number, an_instance, texts
from nti.editing.alignment import Alignment, align
from nti.editing.control_schedule import (
    ControlSchedule,
    CrossWindow,
    Window,
    cross_windows,
    equalizer,
    self_windows,
)
from nti.editing.local_blend import START, THRESHOLD, BlendWords, LocalBlend
from nti.networks.tokenizer import Tokenizer

__all__ = ["EditPlan"]

MOST_STEPS = 1000
"""As many as Stable Diffusion was trained on."""


@dataclass(frozen=True, eq=False)
class EditPlan:
    """E edits of one source prompt over T steps: words, alignments, windows, folds, blend.

    It holds no latent and no weight, so one plan serves every inversion of its prompt and length.
    """

    source: str
    """The source's prompt."""
    prompts: tuple[str, ...]
    """E edited prompts."""
    alignments: tuple[Alignment, ...]
    """How each prompt was aligned with the source's; `.mode` tells what `auto` chose."""
    controls: ControlSchedule
    """Windows and folds of every step, float64 on the CPU."""
    blend: LocalBlend | None
    """Where the edits may change the image; None: everywhere."""

    @property
    def steps(self) -> int:
        """T, the number of steps that it was made for."""
        return self.controls.steps

    @classmethod
    def create(
        cls,
        tokenizer: Tokenizer,
        source: str,
        prompts: str | Sequence[str],
        *,
        steps: int,
        mode: str | list[str] = "auto",
        cross_replace: CrossWindow | list[CrossWindow] = 0.8,
        self_replace: Window | list[Window] = 0.5,
        blend: BlendWords | list[BlendWords | None] | None = None,
        subtract: BlendWords | list[BlendWords | None] | None = None,
        reweight: Mapping[str, float] | list[Mapping[str, float] | None] | None = None,
        blend_start: float = START,
        blend_threshold: float = THRESHOLD,
    ) -> "EditPlan":
        """Look every word up and fold the maps' edits, step by step.

        Args:
            tokenizer: the model's.
            source: the source's prompt.
            prompts: E edited prompts, or one.
            steps: T.
            mode: see `nti.edit`, as for all that follow.
            cross_replace: see there.
            self_replace: see there.
            blend: see there.
            subtract: see there.
            reweight: see there.
            blend_start: see there.
            blend_threshold: see there.

        Raises:
            ValueError: settings that do not fit, with what was got and expected.

        """
        an_instance("tokenizer", tokenizer, Tokenizer)
        source, prompts = a_text("source", source), texts("prompts", prompts)
        count = len(prompts)
        if not prompts:
            raise ValueError("prompts: got none, expected one edited prompt or more")
        steps = a_whole_number("steps", steps, 1, MOST_STEPS, ", as the inversion has")
        encoded = tokenizer.encode(source)
        targets = [tokenizer.encode(prompt) for prompt in prompts]
        modes = _each("mode", mode, count)
        alignments = tuple(align(m, encoded, t) for m, t in zip(modes, targets, strict=True))
        controls = ControlSchedule.create(
            alignments,
            cross_windows(_each("cross_replace", cross_replace, count), targets, steps),
            equalizer(_each("reweight", reweight, count), targets),
            self_windows(_each("self_replace", self_replace, count), steps),
        )
        local_blend = LocalBlend.create(
            encoded, targets, _each("blend", blend, count), _each("subtract", subtract, count),
            start=blend_start, threshold=blend_threshold,
        )  # fmt: skip
        return cls(source, prompts, alignments, controls, local_blend)

    def check_dtype(self, dtype: torch.dtype) -> None:
        """Raise ValueError for a factor that what the UNet computes in cannot hold."""
        most = torch.finfo(dtype).max
        if self.controls.largest > most:
            raise ValueError(
                f"reweight: got a factor of {self.controls.largest:g}, expected at most {most:g},"
                f" the largest number of {dtype}: choose a smaller one, or another dtype"
            )


def _each(name: str, setting: Any, count: int) -> list[Any]:
    """One value for all edits, or a list of one each."""
    if not isinstance(setting, list):
        return [setting] * count
    if len(setting) != count:
        raise ValueError(
            f"{name}: got a list of {len(setting)}, expected {count}, one for each edited prompt"
        )
    return setting
