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
from nti.sampling.step import AdamState, IterationInputs, begin, guided_noise, noise

__all__ = [
    "NullTextResult",
    "NullTextState",
    "Rule",
    "Timestep",
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
class Timestep:
    """An optimization inside one timestep, after some iterations."""

    uncond: Tensor
    """The embeddings (B, 77, C)."""
    adam: AdamState
    active: Tensor
    """(B,) bool: the images that have not stopped."""
    losses: Tensor
    """(B, N), NaN where none was computed."""
    iterations: int
    """How many were computed."""


@dataclass(frozen=True, eq=False)
class NullTextState:
    """How far an optimization is: all that the rest of it depends on."""

    uncond: tuple[Tensor, ...]
    """The embeddings (B, 77, C) of the timesteps that are done."""
    latents: tuple[Tensor, ...]
    """The latents visited (B, 4, h, w): z_T, and one more for each of them."""
    losses: tuple[Tensor, ...]
    """Their losses (B, N), NaN where an image had stopped."""
    timestep: Timestep | None = None
    """The one that is under way; None before its first iteration."""
    length: Tensor | None = None
    """(B,), of the next step of a line search (`nti.inversion.line_search`); None without one."""


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
    watch: Callable[[NullTextState], object] | None = None,
    state: NullTextState | None = None,
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
        watch: told how far it is after every iteration and every timestep.
        state: where to go on from, as `watch` was told it; None: from the start.

    Raises:
        NotFiniteError: latents that overflow, of all images.
        Stopped: by the callback.

    """
    state = state or NullTextState((), (pivot[0],), ())
    for i in range(len(state.uncond), schedule.steps):
        latent, t = state.latents[-1], schedule.timestep(i, pivot)
        begun = begin(steps.noise, latent, t)
        eps_cond = steps.noise(begun, t, cond)
        x = IterationInputs.first(
            state.uncond[-1] if state.uncond else uncond.clone(),  # could be of inference mode
            latent,
            schedule,
            i,
            eps_cond=eps_cond,
            target=pivot[i + 1],
            guidance_scale=guidance_scale,
            learning_rate=learning_rate(i, schedule.steps),
            begun=begun,
        )
        done = _optimize_timestep(steps, x, state, inner_steps, threshold(i, schedule.steps), watch)
        eps = guided_noise(steps.noise(begun, t, done.uncond), eps_cond, guidance_scale)
        latent = ddim_step(latent, eps, schedule.coefficients(i))
        where = f"null-text optimization at timestep {schedule.timesteps[i]}"
        check_finite(latent, where, steps.unet.conv_in.weight.dtype, spare_rows=True)
        state = NullTextState(
            (*state.uncond, done.uncond), (*state.latents, latent), (*state.losses, done.losses)
        )
        if watch is not None:
            watch(state)
        report(callback, i + 1, schedule.steps)
    return NullTextResult(*(torch.stack(x) for x in (state.uncond, state.latents, state.losses)))


def _optimize_timestep(
    steps: Steps,
    x: IterationInputs,
    state: NullTextState,
    inner_steps: int,
    threshold: float,
    watch: Callable[[NullTextState], object] | None,
) -> Timestep:
    """Iterate on one timestep, from where the state has it."""
    trace = x.uncond.new_full((len(x.uncond), inner_steps), torch.nan)
    at = state.timestep or Timestep(x.uncond, x.adam, x.active, trace, 0)
    while at.iterations < inner_steps and at.active.any():
        made = steps.null_text_iteration(
            replace(x, uncond=at.uncond, adam=at.adam, active=at.active)
        )
        losses = at.losses.clone()
        losses[:, at.iterations] = torch.where(at.active, made.losses, torch.nan)
        active = at.active & (made.losses >= threshold)
        at = Timestep(made.uncond, made.adam, active, losses, at.iterations + 1)
        if watch is not None:
            watch(replace(state, timestep=at))
    return at
