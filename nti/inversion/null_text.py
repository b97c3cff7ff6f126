"""Null-text optimization: one null embedding a timestep, so that guided sampling follows the pivot
(Algorithm 1).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from nti.model import StableDiffusion
from nti.sampling.schedule import Schedule, ddim_step
from nti.sampling.step import AdamState, guided_noise

__all__ = ["NullTextResult", "optimize_null_text", "published_learning_rate", "published_threshold"]


def published_learning_rate(index: int, steps: int) -> float:
    """1e-2 (1 - i / 2T) for the i-th of T steps; at T = 50 the published 1e-2 (1 - i / 100)."""
    return 1e-2 * (1.0 - index / (2.0 * steps))


def published_threshold(index: int, steps: int) -> float:
    """Early stop below 1e-5 + 2e-5 * 50 i / T; at T = 50 the published 1e-5 + 2e-5 i."""
    return 1e-5 + 2e-5 * 50.0 * index / steps


@dataclass(frozen=True)
class NullTextResult:
    """What optimization leaves, in sampling order."""

    uncond: Tensor
    """(T, B, 77, C)."""
    latents: Tensor
    """The latents visited, z_T .. z_0: (T + 1, B, 4, h, w)."""
    losses: Tensor
    """(T, B, N), NaN where an image had stopped."""


@torch.no_grad()
def optimize_null_text(
    model: StableDiffusion,
    pivot: Tensor,
    cond: Tensor,
    uncond: Tensor,
    schedule: Schedule,
    *,
    guidance_scale: float,
    inner_steps: int,
    learning_rate: Callable[[int, int], float] = published_learning_rate,
    threshold: Callable[[int, int], float] = published_threshold,
    progress: bool = False,
) -> NullTextResult:
    """Algorithm 1 of the null-text inversion paper, for B images at once.

    At each timestep Adam starts afresh from the previous timestep's embedding. An image stops after
    the update whose loss, taken before it, lies below the threshold, so it makes at least one.

    Args:
        model: the model.
        pivot: (T + 1, B, 4, h, w).
        cond: the prompts' token states (B, 77, C).
        uncond: where the embeddings start, psi("") (B, 77, C).
        schedule: the timesteps.
        guidance_scale: w.
        inner_steps: N, at most this many iterations a timestep; 0 keeps `uncond`.
        learning_rate: of (index, steps).
        threshold: of (index, steps).
        progress: show a bar.

    Raises:
        ValueError: latents that are not finite, as of an overflow in half precision.

    """
    latents, embeddings, losses = [pivot[0]], [], []
    for i in tqdm(range(schedule.steps), "optimizing", disable=not progress):
        latent, timestep, step = (
            latents[-1],
            schedule.timesteps[i],
            schedule.coefficients(i).to(latents[-1]),
        )
        begun = model.begin(latent, timestep)
        eps_cond = model.finish(begun, cond)
        adam = AdamState.fresh(uncond)
        active = torch.ones(uncond.shape[0], dtype=torch.bool, device=uncond.device)
        trace = uncond.new_full((uncond.shape[0], inner_steps), torch.nan)
        for j in range(inner_steps):
            uncond, adam, loss = model.null_text_iteration(
                begun,
                uncond,
                adam,
                latent,
                eps_cond,
                pivot[i + 1],
                step,
                guidance_scale,
                learning_rate(i, schedule.steps),
                active,
            )
            trace[:, j] = torch.where(active, loss, torch.nan)
            active = active & (loss >= threshold(i, schedule.steps))
            if not active.any():
                break
        eps = guided_noise(model.finish(begun, uncond), eps_cond, guidance_scale)
        latents.append(ddim_step(latent, eps, step))
        if not latents[-1].isfinite().all():
            raise ValueError(
                f"null-text optimization: got values that are not finite at timestep {timestep},"
                f" in {model.dtype}: use float32, or bfloat16, which overflows later than float16"
            )
        embeddings.append(uncond)
        losses.append(trace)
    return NullTextResult(torch.stack(embeddings), torch.stack(latents), torch.stack(losses))
