"""Null-text optimization: one null embedding a timestep, so that guided sampling follows the pivot
(null-text inversion, arXiv 2211.09794, Algorithm 1).

`reference` is the algorithm as it is written, for one image. `optimize_null_text` computes the same
for many at once: the conditional noise once a timestep, the gradient and Adam as one pure step.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from nti.errors import Callback, check_finite, report
from nti.execution.steps import Steps
from nti.networks.unet import UNet
from nti.sampling.schedule import Schedule, ddim_step
from nti.sampling.step import IterationInputs, guided_noise, noise

__all__ = [
    "NullTextResult",
    "Rule",
    "optimize_null_text",
    "published_learning_rate",
    "published_threshold",
    "reference",
]

Rule = Callable[[int, int], float]
"""A number for the i-th of T steps."""


def published_learning_rate(index: int, steps: int) -> float:
    """1e-2 (1 - i / 2T) for the i-th of T steps; at T = 50 the published 1e-2 (1 - i / 100)."""
    return 1e-2 * (1.0 - index / (2.0 * steps))


def published_threshold(index: int, steps: int) -> float:
    """Early stop below 1e-5 + 2e-5 * 50 i / T; at T = 50 the published 1e-5 + 2e-5 i."""
    return 1e-5 + 2e-5 * 50.0 * index / steps


def reference(
    unet: UNet,
    pivot: Tensor,
    cond: Tensor,
    uncond: Tensor,
    schedule: Schedule,
    *,
    guidance_scale: float,
    inner_steps: int,
    learning_rate: Rule = published_learning_rate,
    threshold: Rule = published_threshold,
) -> Tensor:
    """Algorithm 1 as it is written: the null embedding of each timestep, (T, 1, 77, C).

    The denoiser is `unet`. All other arguments are those of `optimize_null_text`, with B = 1.
    """
    latent, embeddings = pivot[0], []
    for i in range(schedule.steps):
        t, step = schedule.timestep(i, latent), schedule.coefficients(i)
        eps_cond = noise(unet, latent, t, cond)
        uncond = uncond.detach().clone().requires_grad_()
        adam = torch.optim.Adam([uncond], lr=learning_rate(i, schedule.steps))
        for _ in range(inner_steps):
            eps = guided_noise(noise(unet, latent, t, uncond), eps_cond, guidance_scale)
            loss = F.mse_loss(ddim_step(latent, eps, step), pivot[i + 1])
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            if loss < threshold(i, schedule.steps):
                break
        eps = guided_noise(noise(unet, latent, t, uncond), eps_cond, guidance_scale)
        latent = ddim_step(latent, eps, step).detach()
        embeddings.append(uncond.detach())
    return torch.stack(embeddings)


@dataclass(frozen=True, eq=False)
class NullTextResult:
    """What optimization leaves, in sampling order."""

    uncond: Tensor
    """(T, B, 77, C)."""
    latents: Tensor
    """The latents visited, z_T .. z_0: (T + 1, B, 4, h, w)."""
    losses: Tensor
    """(T, B, N), NaN where an image had stopped."""


@torch.inference_mode(mode=False)  # the embedding learns, whatever mode the caller is in
@torch.no_grad()
def optimize_null_text(
    steps: Steps,
    pivot: Tensor,
    cond: Tensor,
    uncond: Tensor,
    schedule: Schedule,
    *,
    guidance_scale: float,
    inner_steps: int,
    learning_rate: Rule = published_learning_rate,
    threshold: Rule = published_threshold,
    callback: Callback | None = None,
) -> NullTextResult:
    """Algorithm 1 of the null-text inversion paper, for B images at once.

    At each timestep Adam starts afresh from the previous timestep's embedding. An image stops after
    the update whose loss, taken before it, lies below the threshold, so it makes at least one.

    Args:
        steps: the model's steps.
        pivot: (T + 1, B, 4, h, w).
        cond: the prompts' token states (B, 77, C).
        uncond: where the embeddings start, psi("") (B, 77, C).
        schedule: the timesteps.
        guidance_scale: w.
        inner_steps: N, at most this many iterations a timestep; 0 keeps `uncond`.
        learning_rate: of Adam, by timestep.
        threshold: of the early stop, by timestep.
        callback: see `nti.errors.Callback`.

    Raises:
        NotFiniteError: latents that are not finite, as of an overflow in half precision.
        Stopped: by the callback.

    """
    latent, visited, embeddings, losses = pivot[0], [pivot[0]], [], []
    uncond = uncond.clone()  # one made in inference mode could not learn
    for i in range(schedule.steps):
        t = schedule.timestep(i, latent)
        eps_cond = steps.noise(latent, t, cond)
        x = IterationInputs.first(
            uncond,
            latent,
            schedule,
            i,
            eps_cond=eps_cond,
            target=pivot[i + 1],
            guidance_scale=guidance_scale,
            learning_rate=learning_rate(i, schedule.steps),
        )
        uncond, trace = _optimize_timestep(steps, x, inner_steps, threshold(i, schedule.steps))
        eps = guided_noise(steps.noise(latent, t, uncond), eps_cond, guidance_scale)
        latent = ddim_step(latent, eps, schedule.coefficients(i))
        where = f"null-text optimization at timestep {schedule.timesteps[i]}"
        check_finite(latent, where, steps.unet.conv_in.weight.dtype)
        visited.append(latent)
        embeddings.append(uncond)
        losses.append(trace)
        report(callback, i + 1, schedule.steps)
    return NullTextResult(torch.stack(embeddings), torch.stack(visited), torch.stack(losses))


def _optimize_timestep(
    steps: Steps, x: IterationInputs, inner_steps: int, threshold: float
) -> tuple[Tensor, Tensor]:
    """Return one timestep's embeddings (B, 77, C), and their losses (B, N) with NaN at the end."""
    trace = x.uncond.new_full((len(x.uncond), inner_steps), torch.nan)
    for j in range(inner_steps):
        made = steps.null_text_iteration(x)
        trace[:, j] = torch.where(x.active, made.losses, torch.nan)
        active = x.active & (made.losses >= threshold)
        x = replace(x, uncond=made.uncond, adam=made.adam, active=active)
        if not active.any():
            break
    return x.uncond, trace
