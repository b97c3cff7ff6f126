"""`edit`: the sampling loop with Prompt-to-Prompt's control, the source replayed from the
inversion.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from nti.editing.alignment import Alignment, align
from nti.editing.controls import (
    ControlSchedule,
    CrossWindow,
    Window,
    cross_windows,
    equalizer,
    self_window,
)
from nti.editing.local_blend import BlendWords, LocalBlend
from nti.image import to_pil
from nti.inversion.record import Inversion
from nti.inversion.sampling import check_model
from nti.model import StableDiffusion
from nti.sampling.schedule import ddim_step
from nti.sampling.step import guided_noise

__all__ = ["EditResult", "edit"]


@dataclass(frozen=True, eq=False)
class EditResult:
    """What an edit of E prompts gives."""

    images: list[Image.Image]
    """The edited images."""
    latents: Tensor
    """The edits' latents, in sampling order: (steps - start + 1, E, 4, h, w)."""
    source: Image.Image
    """The source as the batch had it: the inversion's reconstruction."""
    masks: Tensor | None
    """Where local blend let each edit change, by step: (steps - start, E, h, w) bool, or None."""
    alignments: tuple[Alignment, ...]
    """How each prompt was aligned with the source's; `.mode` tells what `auto` chose."""


@torch.no_grad()
def edit(
    model: StableDiffusion,
    inversion: Inversion,
    prompts: str | Sequence[str],
    *,
    mode: str | list[str] = "auto",
    cross_replace: CrossWindow | list[CrossWindow] = 0.8,
    self_replace: Window = 0.5,
    blend: BlendWords | list[BlendWords | None] | None = None,
    subtract: BlendWords | list[BlendWords | None] | None = None,
    reweight: Mapping[str, float] | list[Mapping[str, float] | None] | None = None,
    replay: bool = True,
    guidance_scale: float | None = None,
    start: int = 0,
    progress: bool = False,
) -> EditResult:
    """Edit an inverted image by its words (Prompt-to-Prompt, arXiv 2208.01626).

    `mode`, `cross_replace`, `blend`, `subtract` and `reweight` take one value for all edits or a
    list, one an edit. Where one of them is a pair (source, edit) or (start, end) it is a tuple,
    never a list.

    Args:
        model: the model that the inversion was made with.
        inversion: of the source image.
        prompts: E edited prompts, or one.
        mode: `replace` (word for word), `refine` (words added or removed), `reweight` (the same
            tokens), or `auto`: replace where both prompts have the same number of words, refine
            elsewhere.
        cross_replace: until which share of the steps an edit's cross-attention is the source's; see
            `CrossWindow`.
        self_replace: until which share of the steps its self-attention is.
        blend: words outside whose regions nothing changes: ("cat", "tiger"), or one for both
            prompts.
        subtract: words in whose regions nothing changes.
        reweight: factors on the attention of words of the edited prompt: {"tiger": 2.0}.
        replay: read the source's latents from the inversion, and compute only its attention; False
            computes the source's branch too, as the published batch of 2E + 2 rows does.
        guidance_scale: w of the edits; None: the inversion's. The source keeps the inversion's.
        start: the step to start at, from the inversion's latent there; windows count from step 0
            all the same.
        progress: show a bar.

    Raises:
        ValueError: settings that do not fit, with what was got and expected.

    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    count, steps = len(prompts), inversion.steps
    check_model(model, inversion)
    if not prompts:
        raise ValueError("prompts: got none, expected one edited prompt or more")
    if not 0 <= start < steps:
        raise ValueError(f"start: got {start}, expected 0 to {steps - 1}, a step of the inversion")
    if guidance_scale is not None and not math.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale: got {guidance_scale}, expected a finite number")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `encode_text` says what is cut
        source = model.tokenizer.encode(inversion.prompt)
        targets = [model.tokenizer.encode(prompt) for prompt in prompts]
    modes = _each("mode", mode, count)
    alignments = tuple(align(m, source, target) for m, target in zip(modes, targets, strict=True))
    local_blend = LocalBlend.create(
        source, targets, _each("blend", blend, count), _each("subtract", subtract, count)
    )
    schedule = ControlSchedule.create(
        alignments,
        cross_windows(_each("cross_replace", cross_replace, count), targets, steps),
        equalizer(_each("reweight", reweight, count), targets),
        self_window(self_replace, steps),
        None if local_blend is None else local_blend.words,
    ).to(model.device, model.state_dtype)
    loop = _Loop(
        model,
        inversion,
        schedule,
        local_blend,
        inversion.guidance_scale if guidance_scale is None else guidance_scale,
        replay,
    )
    latents, source_latent, masks = loop.run(prompts, start, progress)
    if masks is not None:
        for prompt, mask in zip(prompts, masks.unbind(dim=1), strict=True):
            if not mask[-1].any():
                warnings.warn(
                    f"local blend: the mask of {prompt!r} is empty, so the edit shows nowhere; its"
                    f" words have no attention of their own left, or `subtract` takes it all",
                    stacklevel=3,
                )
    images = to_pil(model.decode_latent(torch.cat([latents[-1], source_latent])))
    return EditResult(images[:-1], latents.cpu(), images[-1], masks, alignments)


def _each(name: str, setting: Any, count: int) -> list[Any]:
    """One value for all edits, or a list of one each."""
    if not isinstance(setting, list):
        return [setting] * count
    if len(setting) != count:
        raise ValueError(
            f"{name}: got a list of {len(setting)}, expected {count}, one for each edited prompt"
        )
    return setting


@dataclass(frozen=True)
class _Loop:
    """What stays the same over the steps of one edit."""

    model: StableDiffusion
    inversion: Inversion
    controls: ControlSchedule
    blend: LocalBlend | None
    guidance_scale: float
    replay: bool

    def run(
        self, prompts: Sequence[str], start: int, progress: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the edits' latents (steps + 1, E, ...), the source's last one, the masks."""
        model, schedule = self.model, self.model.schedule(self.inversion.steps)
        visited = self.inversion.latents.to(model.device, model.state_dtype)
        cond = model.encode_text([self.inversion.prompt, *prompts])
        uncond = self.inversion.uncond.to(model.device, model.state_dtype)
        edits = visited[start].expand(len(prompts), -1, -1, -1)
        source = visited[start][None]
        latents, masks, maps = [edits], [], None
        for i in tqdm(range(start, schedule.steps), "editing", disable=not progress):
            eps_source, eps_edits, words = self._noise(
                i, schedule.timesteps[i], source, edits, cond, uncond[i]
            )
            step = schedule.coefficients(i)
            edits = ddim_step(edits, guided_noise(*eps_edits, self.guidance_scale), step)
            if eps_source is None:
                source = visited[i + 1][None]
            else:
                source = ddim_step(
                    source, guided_noise(*eps_source, self.inversion.guidance_scale), step
                )
            if self.blend is not None:
                assert words is not None
                maps = words if maps is None else maps + words
                mask = torch.ones_like(edits[:, 0], dtype=torch.bool)
                if i >= self.blend.starts(schedule.steps):
                    mask = self.blend.mask(maps, (edits.shape[-2], edits.shape[-1]))
                    edits = torch.where(mask[:, None], edits, source)
                masks.append(mask)
            latents.append(edits)
        return torch.stack(latents), source, torch.stack(masks).cpu() if masks else None

    def _noise(
        self, i: int, timestep: int, source: Tensor, edits: Tensor, cond: Tensor, uncond: Tensor
    ) -> tuple[tuple[Tensor, Tensor] | None, tuple[Tensor, Tensor], Tensor | None]:
        """Predict (uncond, cond) noise of the source, unless it is replayed, and of the edits.

        The batch is [unconditional rows, conditional rows], and only the conditional half is
        controlled. A replayed source has no unconditional row, and none at all once no edit needs
        its attention.
        """
        count = edits.shape[0]
        needed = self.controls.needs_source[i]
        with_source = torch.cat([source, edits])
        free = edits if self.replay else with_source
        guided = with_source if needed or not self.replay else edits
        latent = torch.cat([free, guided])
        context = torch.cat([uncond.expand(len(free), -1, -1), cond[-len(guided) :]])
        control = self.controls.control(i, len(latent)) if needed else None
        eps, maps = self.model.predict_noise_controlled(latent, timestep, context, control)
        eps_edits = (eps[len(free) - count : len(free)], eps[-count:])
        eps_source = None if self.replay else (eps[:1], eps[len(free) : len(free) + 1])
        return eps_source, eps_edits, maps
