"""Null-text optimization by few steps whose length is measured (`null-text-fast`).

Adam moves every coordinate of an embedding by about its learning rate, whether it matters or not.
Here one step along the gradient is made, as long as the loss says: the loss is nearly quadratic
along a line, so its value and slope at one end and its value at another give the minimum.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from nti.errors import Callback, check_finite, report
from nti.execution.steps import Steps
from nti.inversion.methods import SEARCH_EVERY
from nti.inversion.null_text import NullTextResult, NullTextState
from nti.sampling.schedule import Schedule, ddim_step
from nti.sampling.step import BETA_1, IterationInputs, guided_noise

__all__ = ["search_null_text"]


@torch.inference_mode(mode=False)  # the embedding learns, whatever mode the caller is in
@torch.no_grad()
def search_null_text(
    steps: Steps,
    pivot: Tensor,
    cond: Tensor,
    uncond: Tensor,
    schedule: Schedule,
    *,
    guidance_scale: float,
    every: int = SEARCH_EVERY,
    callback: Callback | None = None,
    watch: Callable[[NullTextState], object] | None = None,
    state: NullTextState | None = None,
) -> NullTextResult:
    """Follow the pivot as Algorithm 1 does, with one line search at every other timestep.

    A search costs two forward passes and one backward pass of the unconditional branch.

    Args:
        steps: the model's steps.
        pivot: (T + 1, B, 4, h, w).
        cond: the prompts' token states (B, 77, C).
        uncond: where the embeddings start, psi("") (B, 77, C).
        schedule: the timesteps.
        guidance_scale: w.
        every: timesteps from one search to the next.
        callback: see `nti.errors.Callback`.
        watch: told how far it is after every timestep.
        state: where to go on from, as `watch` was told it; None: from the start.

    Raises:
        NotFiniteError: latents that overflow, of all images.
        Stopped: by the callback.

    """
    state = state or NullTextState((), (pivot[0],), ())
    for i in range(len(state.uncond), schedule.steps):
        latent, t = state.latents[-1], schedule.timestep(i, pivot)
        x = IterationInputs.first(
            state.uncond[-1] if state.uncond else uncond.clone(),
            latent,
            schedule,
            i,
            eps_cond=steps.noise(latent, t, cond),
            target=pivot[i + 1],
            guidance_scale=guidance_scale,
            learning_rate=0.0,
        )
        found, loss = x.uncond, latent.new_full((len(latent), 1), torch.nan)
        if i % every == 0:
            found, loss[:, 0] = _searched(steps, x)
        after = _stepped(x, steps.noise(latent, t, found))
        where = f"null-text search at timestep {schedule.timesteps[i]}"
        check_finite(after, where, steps.unet.conv_in.weight.dtype, spare_rows=True)
        state = NullTextState(
            (*state.uncond, found), (*state.latents, after), (*state.losses, loss)
        )
        if watch is not None:
            watch(state)
        report(callback, i + 1, schedule.steps)
    return NullTextResult(*(torch.stack(x) for x in (state.uncond, state.latents, state.losses)))


def _searched(steps: Steps, x: IterationInputs) -> tuple[Tensor, Tensor]:
    """Return the embeddings (B, 77, C) of least loss along the gradient, and the loss before."""
    made = steps.null_text_iteration(x)
    gradient = made.adam.mean / (1 - BETA_1)  # of a fresh Adam
    slope = gradient.flatten(1).norm(dim=1)
    tiny = torch.finfo(slope.dtype).tiny
    downhill = -gradient / slope.clamp_min(tiny)[:, None, None]
    # Were the loss linear, a step of this length would bring it to zero.
    trial = made.losses / slope.clamp_min(tiny)
    tried = _stepped(x, steps.noise(x.latent, x.timestep, x.uncond + _times(trial, downhill)))
    bend = (tried - x.target).square().flatten(1).mean(dim=1) - made.losses + slope * trial
    # No parabola that stays above zero has its minimum beyond twice that length.
    length = trial * (slope * trial / (2 * bend).clamp_min(tiny)).clamp(max=2.0)
    return x.uncond + _times(length, downhill), made.losses


def _stepped(x: IterationInputs, eps_uncond: Tensor) -> Tensor:
    """Return where the guided step leads (B, 4, h, w)."""
    eps = guided_noise(eps_uncond, x.eps_cond, x.guidance_scale)
    return ddim_step(x.latent, eps, x.coefficients)


def _times(lengths: Tensor, directions: Tensor) -> Tensor:
    return lengths[:, None, None] * directions
