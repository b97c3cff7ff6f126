"""Null-text optimization by few steps whose length is measured (`null-text-fast`).

Adam moves every coordinate of an embedding by about its learning rate, whether it matters or not.
Here a step goes along the gradient. Where it leads is evaluated anyway, as the guided step needs
the noise there. The loss is nearly quadratic along a line, so its value and slope at one end and
its value at the other say how long the step should have been. The next one is so long.

It starts between psi(P) and psi(""). At psi(P) guidance does nothing, so nothing is lost, but edits
keep less of the image. At psi("") more has to be made up for than so few steps can.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from nti.errors import Callback, check_finite, report
from nti.execution.steps import Steps
from nti.inversion.methods import is_searched
from nti.inversion.null_text import NullTextResult, NullTextState
from nti.sampling.schedule import Schedule, ddim_step
from nti.sampling.step import BETA_1, IterationInputs, begin, guided_noise

__all__ = ["search_null_text"]

SHRINK, GROW = 0.1, 4.0
"""How much a step may be shorter or longer than the one before it."""


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
    searched: Callable[[int, int], bool] = is_searched,
    callback: Callback | None = None,
    watch: Callable[[NullTextState], object] | None = None,
    state: NullTextState | None = None,
) -> NullTextResult:
    """Follow the pivot as Algorithm 1 does, with one step along the gradient at some timesteps.

    Such a step costs one forward and one backward pass of the unconditional branch. A step that
    does not lower an image's loss is not made.

    Args:
        steps: the model's steps.
        pivot: (T + 1, B, 4, h, w).
        cond: the prompts' token states (B, 77, C).
        uncond: where the embeddings start (B, 77, C).
        schedule: the timesteps.
        guidance_scale: w.
        searched: whether a step is made at the i-th of T timesteps, a function of (i, T).
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
        begun = begin(steps.noise, latent, t)
        x = IterationInputs.first(
            state.uncond[-1] if state.uncond else uncond.clone(),
            latent,
            schedule,
            i,
            eps_cond=steps.noise(begun, t, cond),
            target=pivot[i + 1],
            guidance_scale=guidance_scale,
            learning_rate=0.0,
            begun=begun,
        )
        found, length = x.uncond, state.length
        loss = latent.new_full((len(latent), 1), torch.nan)
        if searched(i, schedule.steps):
            found, after, loss[:, 0], length = _search(steps, x, length)
        else:
            after = _stepped(x, steps.noise(begun, t, found))
        where = f"null-text search at timestep {schedule.timesteps[i]}"
        check_finite(after, where, steps.unet.conv_in.weight.dtype, spare_rows=True)
        state = NullTextState(
            (*state.uncond, found), (*state.latents, after), (*state.losses, loss), length=length
        )
        if watch is not None:
            watch(state)
        report(callback, i + 1, schedule.steps)
    return NullTextResult(*(torch.stack(x) for x in (state.uncond, state.latents, state.losses)))


def _search(
    steps: Steps, x: IterationInputs, length: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Make one step where it lowers the loss.

    Returns:
        The embeddings (B, 77, C), the latents after the guided step with them (B, 4, h, w), the
        losses before (B,), and how long the next steps should be (B,).

    """
    made = steps.null_text_iteration(x)
    gradient = made.adam.mean / (1 - BETA_1)  # of a fresh Adam
    tiny = torch.finfo(gradient.dtype).tiny
    slope = gradient.flatten(1).norm(dim=1)
    direction = gradient / slope.clamp_min(tiny)[:, None, None]
    # A parabola that stays above zero has its minimum at twice this length at most.
    to_zero = torch.where(slope > 0, made.losses / slope.clamp_min(tiny), 0.0)
    fresh = to_zero / 2
    if length is not None:
        fresh = torch.where(length > 0, length.minimum(2 * to_zero), fresh)
    length = fresh
    tried = x.uncond - length[:, None, None] * direction
    after = _stepped(x, steps.noise(x.point, x.timestep, tried))
    losses = (after - x.target).square().flatten(1).mean(dim=1)
    bend = losses - made.losses + slope * length
    best = length * (slope * length / (2 * bend).clamp_min(tiny)).clamp(SHRINK, GROW)
    better = losses < made.losses
    found = torch.where(better[:, None, None], tried, x.uncond)
    after = torch.where(better[:, None, None, None], after, made.reached)
    return found, after, made.losses, best


def _stepped(x: IterationInputs, eps_uncond: Tensor) -> Tensor:
    """Return where the guided step leads (B, 4, h, w)."""
    eps = guided_noise(eps_uncond, x.eps_cond, x.guidance_scale)
    return ddim_step(x.latent, eps, x.coefficients)
