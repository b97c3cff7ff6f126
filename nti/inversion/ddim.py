"""The pivot: DDIM inversion at guidance 1."""

import torch
from torch import Tensor
from tqdm import tqdm

from nti.model import StableDiffusion
from nti.sampling.schedule import Schedule, ddim_inverse_step

__all__ = ["TIMESTEP_RULES", "ddim_invert"]

TIMESTEP_RULES = ("target", "current")


@torch.no_grad()
def ddim_invert(
    model: StableDiffusion,
    latent: Tensor,
    cond: Tensor,
    schedule: Schedule,
    *,
    noise_at: str = "target",
    progress: bool = False,
) -> Tensor:
    """z*_0 -> z*_T with the conditional noise alone (null-text paper, section 3.1).

    Args:
        model: the model.
        latent: z_0 (B, 4, h, w).
        cond: the prompt's token states (B, 77, C).
        schedule: the timesteps.
        noise_at: at which timestep the noise is predicted that moves z from t - 20 to t: `target`,
            t, as the published code does, or `current`, t - 20, as the paper writes (the first
            move, which has no timestep before it, takes t in both).
        progress: show a bar.

    Returns:
        The pivot in sampling order (T + 1, B, 4, h, w): index 0 is z*_T, the last is `latent`.

    Raises:
        ValueError: another `noise_at`.

    """
    if noise_at not in TIMESTEP_RULES:
        raise ValueError(f"noise_at: got {noise_at!r}, expected one of {', '.join(TIMESTEP_RULES)}")
    pivot = [latent]
    for i in tqdm(
        reversed(range(schedule.steps)), "inverting", schedule.steps, disable=not progress
    ):
        later = min(i + 1, schedule.steps - 1)
        timestep = schedule.timesteps[i if noise_at == "target" else later]
        eps = model.predict_noise(pivot[-1], timestep, cond)
        pivot.append(ddim_inverse_step(pivot[-1], eps, schedule.coefficients(i)))
    return torch.stack(pivot[::-1])
