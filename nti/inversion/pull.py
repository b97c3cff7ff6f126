"""Guided sampling that is led back to its pivot: what each step is short of is added to it.

With all of it, at every step, the source's latents are the pivot's, and the network need not be
asked: that is direct inversion (Ju et al. 2023, arXiv 2310.01506). What is added along latents that
were noised independently is the noise of the DDPM sampler: edit-friendly inversion (Huberman-
Spiegelglas et al. 2023, arXiv 2304.06140, eq. 5).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nti.errors import Callback, check_finite, report
from nti.execution.steps import Steps
from nti.sampling.schedule import Schedule
from nti.sampling.step import BETA_1, BETA_2, EPSILON

__all__ = ["Pulled", "learned_offset", "pulled"]


@dataclass(frozen=True, eq=False)
class Pulled:
    """Sampling that was led, in sampling order."""

    latents: Tensor
    """The latents visited, z_T .. z_0: (T + 1, B, 4, h, w)."""
    offsets: Tensor
    """What was added to each step: (T, B, 4, h, w)."""


@torch.no_grad()
def pulled(
    steps: Steps,
    pivot: Tensor,
    cond: Tensor,
    uncond: Tensor,
    schedule: Schedule,
    *,
    guidance_scale: float,
    offset: Callable[[Tensor, int], Tensor],
    callback: Callback | None = None,
) -> Pulled:
    """z_T -> z_0 by guided steps, `offset(what the step is short of, index)` added to each.

    Args:
        steps: the model's steps.
        pivot: (T + 1, B, 4, h, w).
        cond: the prompts' token states (B, 77, C).
        uncond: psi("") (B, 77, C).
        schedule: the timesteps, and how much noise its steps add.
        guidance_scale: w.
        offset: of (pivot's next latent - the step's, (B, 4, h, w); the step's index).
        callback: see `nti.errors.Callback`.

    Raises:
        NotFiniteError: latents that overflow, of all images.
        Stopped: by the callback.

    """
    w = pivot.new_full((), guidance_scale)
    latents, offsets = [pivot[0]], []
    for i in range(schedule.steps):
        latent, step = latents[-1], schedule.coefficients(i).to(pivot)
        reached = steps.guided_step(latent, schedule.timestep(i, pivot), uncond, cond, step, w)
        offsets.append(offset(pivot[i + 1] - reached, i))
        latents.append(reached + offsets[-1])
        where = f"guided sampling at timestep {schedule.timesteps[i]}"
        check_finite(latents[-1], where, steps.unet.conv_in.weight.dtype, spare_rows=True)
        report(callback, i + 1, schedule.steps)
    return Pulled(torch.stack(latents), torch.stack(offsets))


def learned_offset(short: Tensor, iterations: int, learning_rate: float) -> Tensor:
    """Return what Adam finds for an offset, from zero, against the mean square of `short - offset`.

    This is the ablation "null latent" of arXiv 2310.01506: it converges to `short` itself.

    Args:
        short: what the step is short of (B, 4, h, w).
        iterations: N.
        learning_rate: of Adam.

    """
    offset = mean = square = torch.zeros_like(short)
    for count in range(1, iterations + 1):
        gradient = 2.0 / short[0].numel() * (offset - short)
        mean = BETA_1 * mean + (1 - BETA_1) * gradient
        square = BETA_2 * square + (1 - BETA_2) * gradient.square()
        root = (square / (1 - BETA_2**count)).sqrt() + EPSILON
        offset = offset - learning_rate * mean / (1 - BETA_1**count) / root
    return offset
