"""`invert_latent`: a method's row, carried out on latents: its pivot, then what follows it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nti.errors import Callback, check_finite, report
from nti.inversion.ddim import ddim_invert
from nti.inversion.fixed_point import WINDOW, fixed_point_invert
from nti.inversion.follow import Followed, Task, follow
from nti.inversion.negative_prompt import negative_prompt_embedding
from nti.inversion.noised import independently_noised, noised_by_one
from nti.inversion.settings import InversionSettings
from nti.inversion.state import InversionState, Watch
from nti.model import StableDiffusion
from nti.sampling.schedule import Schedule

__all__ = ["InvertedLatents", "invert_latent"]


@dataclass(frozen=True, eq=False)
class InvertedLatents:
    """What inverting B latents leaves, on the model's device, in sampling order."""

    pivot: Tensor
    """z*_T .. z*_0: (T + 1, B, 4, h, w)."""
    source: Followed
    """The source's embeddings, latents, losses and offsets."""
    guidance_scale: float
    """w that they were made for."""


@torch.inference_mode(mode=False)  # the embedding learns, whatever mode the caller is in
def invert_latent(
    model: StableDiffusion,
    latent: Tensor,
    prompts: Sequence[str],
    settings: InversionSettings | None = None,
    *,
    callback: Callback | None = None,
    watch: Watch | None = None,
    state: InversionState | None = None,
) -> InvertedLatents:
    """Invert latents: the part of `invert_batch` between encoding and the `Inversion`.

    Args:
        model: the model.
        latent: z_0 (B, 4, h, w), as `model.encode_image` gives it.
        prompts: B of them.
        settings: None: the defaults.
        callback: see `nti.invert`.
        watch: see there.
        state: where to go on from, as `watch` was told it; None: from the start.

    Returns:
        What is found. The rows of images whose latents overflow are not finite.

    Raises:
        ValueError: latents that are not finite or not as many as the prompts, or a model for
        inpainting.
        NotFiniteError: latents that overflow, of all images.
        Stopped: by the callback.

    """
    settings = settings or InversionSettings()
    model.check_takes_latents_alone("invert")
    if latent.ndim != 4 or len(latent) != len(prompts):
        raise ValueError(
            f"latent: got {tuple(latent.shape)} for {len(prompts)} prompts, expected"
            f" ({len(prompts)}, {model.config.unet.latent_channels}, h, w)"
        )
    latent = latent.to(
        model.device, model.state_dtype, copy=True, memory_format=torch.contiguous_format
    )
    check_finite(latent, "latent to invert", latent.dtype)
    method = settings.row
    own = model.config.guidance_scale
    w = own if settings.guidance_scale is None else settings.guidance_scale
    schedule = model.schedule(settings.steps, eta=method.eta)
    cond = model.encode_text(prompts)
    null = model.encode_text([""]).expand_as(cond).contiguous()
    generator = torch.Generator().manual_seed(settings.seed)
    count = schedule.steps
    at = None if state is None else _fitting(state.to(latent.device), latent, count)
    pivot = _pivot(
        model, latent, cond, schedule, settings, generator,
        callback=lambda done, _: report(callback, done, 2 * count),
        watch=None if watch is None else lambda pivot: watch(InversionState(pivot)),
        state=() if at is None else at.pivot,
    )  # fmt: skip
    backwards = tuple(pivot.flip(0))
    task = Task(
        method,
        settings,
        model.steps,
        schedule,
        pivot,
        cond,
        null
        if method.start == "null"
        else negative_prompt_embedding(cond, null, settings.start(w)),
        w,
        generator,
        callback=lambda done, total: report(callback, count + count * done // total, 2 * count),
        watch=None if watch is None else lambda now: watch(InversionState(backwards, now)),
        state=None if at is None else at.null_text,
    )
    return InvertedLatents(pivot, follow(task), w)


def _pivot(
    model: StableDiffusion,
    latent: Tensor,
    cond: Tensor,
    schedule: Schedule,
    settings: InversionSettings,
    generator: torch.Generator,
    *,
    callback: Callback,
    watch: Callable[[tuple[Tensor, ...]], object] | None,
    state: tuple[Tensor, ...],
) -> Tensor:
    """Return what the row's sampling is to follow, (T + 1, B, 4, h, w)."""
    kind = settings.pivot if settings.row.pivot == "ddim" else settings.row.pivot
    if kind == "one-noise":
        return noised_by_one(latent, schedule, generator)
    if kind == "many-noises":
        return independently_noised(latent, schedule, generator)
    if kind == "none":
        return latent.expand(schedule.steps + 1, *latent.shape)
    if kind == "ddim":
        return ddim_invert(
            model.steps, latent, cond, schedule, noise_at=settings.noise_at, callback=callback,
            watch=watch, state=state,
        )  # fmt: skip
    return fixed_point_invert(
        model.steps, latent, cond, schedule, iterations=settings.pivot_iterations,
        window=WINDOW if kind == "anderson" else 1, callback=callback, watch=watch, state=state,
    )  # fmt: skip


def _fitting(state: InversionState, latent: Tensor, steps: int) -> InversionState:
    """Return a state, or raise ValueError for one of another latent or number of steps."""
    first = state.pivot[0]
    alike = first.shape == latent.shape and first.dtype == latent.dtype
    found = state.null_text
    whole = len(state.pivot) == steps + 1
    if not alike or not torch.equal(first, latent) or len(state.pivot) > steps + 1:
        raise ValueError("state: got one of another latent or of more steps, expected this run's")
    if found is not None and (not whole or len(found.uncond) > steps):
        raise ValueError("state: got an optimization without its whole pivot, expected this run's")
    return state
