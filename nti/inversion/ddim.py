"""The pivot: DDIM inversion at guidance 1."""

from collections.abc import Callable

import torch
from torch import Tensor

from nti.arguments import a_choice
from nti.errors import Callback, check_finite, report
from nti.execution.steps import Steps
from nti.sampling.schedule import Schedule, ddim_inverse_step

__all__ = ["TIMESTEP_RULES", "check_noise_at", "ddim_invert"]

TIMESTEP_RULES = ("target", "current")


def check_noise_at(noise_at: str) -> None:
    """Raise ValueError for another rule than `TIMESTEP_RULES`."""
    a_choice("noise_at", noise_at, TIMESTEP_RULES)


@torch.no_grad()
def ddim_invert(
    steps: Steps,
    latent: Tensor,
    cond: Tensor,
    schedule: Schedule,
    *,
    noise_at: str = "target",
    callback: Callback | None = None,
    watch: Callable[[tuple[Tensor, ...]], object] | None = None,
    state: tuple[Tensor, ...] = (),
) -> Tensor:
    """z*_0 -> z*_T with the conditional noise alone (null-text paper, section 3.1).

    Args:
        steps: the model's steps.
        latent: z_0 (B, 4, h, w).
        cond: the prompt's token states (B, 77, C).
        schedule: the timesteps.
        noise_at: at which timestep the noise is predicted that moves z from t - 20 to t: `target`,
            t, as the published code does, or `current`, t - 20, as the paper writes (the first
            move, which has no timestep before it, takes t in both).
        callback: see `nti.errors.Callback`.
        watch: told after every step how far it is: the latents from z*_0 on.
        state: where to go on from, as `watch` was told it; empty: from the start.

    Returns:
        The pivot in sampling order (T + 1, B, 4, h, w): index 0 is z*_T, the last is `latent`.

    Raises:
        ValueError: another `noise_at`.
        NotFiniteError: latents that overflow, of all images.
        Stopped: by the callback.

    """
    check_noise_at(noise_at)
    pivot = state or (latent,)
    for i in reversed(range(schedule.steps + 1 - len(pivot))):
        at = i if noise_at == "target" else min(i + 1, schedule.steps - 1)
        eps = steps.noise(pivot[-1], schedule.timestep(at, latent), cond)
        pivot = (*pivot, ddim_inverse_step(pivot[-1], eps, schedule.coefficients(i)))
        where = f"DDIM inversion to timestep {schedule.timesteps[i]}"
        check_finite(pivot[-1], where, steps.unet.conv_in.weight.dtype, spare_rows=True)
        if watch is not None:
            watch(pivot)
        report(callback, schedule.steps - i, schedule.steps)
    return torch.stack(pivot[::-1])
