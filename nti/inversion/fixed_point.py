"""A pivot that DDIM steps lead back along exactly: each inverse step is solved, not approximated.

DDIM inversion takes the noise at z_{t-1} for that at z_t. The true z_t is a fixed point of

    F(z) = the inverse step from z_{t-1} with eps_theta(z, t, C)

which accelerated iterative diffusion inversion (AIDI, Pan et al. 2023, arXiv 2309.04907) looks for.
"""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor

from nti.errors import Callback, check_finite, report
from nti.execution.steps import Steps
from nti.sampling.schedule import Schedule, ddim_inverse_step

__all__ = ["fixed_point_invert"]

WINDOW = 3
"""Iterates that Anderson's acceleration mixes."""


@torch.no_grad()
def fixed_point_invert(
    steps: Steps,
    latent: Tensor,
    cond: Tensor,
    schedule: Schedule,
    *,
    iterations: int = 5,
    window: int = 1,
    callback: Callback | None = None,
    watch: Callable[[tuple[Tensor, ...]], object] | None = None,
    state: tuple[Tensor, ...] = (),
) -> Tensor:
    """z*_0 -> z*_T, each step a fixed point of F (AIDI, section 3.2).

    Args:
        steps: the model's steps.
        latent: z_0 (B, 4, h, w).
        cond: the prompt's token states (B, 77, C).
        schedule: the timesteps.
        iterations: evaluations of F a step; 1 is DDIM inversion.
        window: 1 repeats F; more mixes that many iterates (Anderson's acceleration), each image its
            own.
        callback: see `nti.errors.Callback`.
        watch: see `nti.inversion.ddim.ddim_invert`.
        state: see there.

    Returns:
        The pivot in sampling order (T + 1, B, 4, h, w).

    Raises:
        NotFiniteError: latents that overflow, of all images.
        Stopped: by the callback.

    """
    pivot = state or (latent,)
    for i in reversed(range(schedule.steps + 1 - len(pivot))):
        before, t, step = pivot[-1], schedule.timestep(i, latent), schedule.coefficients(i)
        at = before
        inputs: list[Tensor] = []
        images: list[Tensor] = []
        for _ in range(iterations):
            image = ddim_inverse_step(before, steps.noise(at, t, cond), step)
            inputs, images = [*inputs, at][-window:], [*images, image][-window:]
            at = mixed(torch.stack(inputs), torch.stack(images))
        pivot = (*pivot, at)
        where = f"fixed point at timestep {schedule.timesteps[i]}"
        check_finite(at, where, steps.unet.conv_in.weight.dtype, spare_rows=True)
        if watch is not None:
            watch(pivot)
        report(callback, schedule.steps - i, schedule.steps)
    return torch.stack(pivot[::-1])


def mixed(inputs: Tensor, images: Tensor) -> Tensor:
    """Return the mix of F(z_k) whose residuals F(z_k) - z_k add up to least (Anderson 1965).

    Args:
        inputs: z_k of the last m iterations (m, B, 4, h, w).
        images: F(z_k), likewise.

    Returns:
        sum_k gamma_k F(z_k) with sum_k gamma_k = 1, (B, 4, h, w).

    """
    if len(inputs) == 1:
        return images[0]
    residuals = rearrange((images - inputs).double(), "m b c h w -> b m (c h w)")
    gram = residuals @ residuals.mT
    # Residuals that have converged are alike: a little of the diagonal keeps it solvable.
    scale = gram.diagonal(dim1=1, dim2=2).amax(dim=1)[:, None, None].clamp_min(1e-300)
    eye = torch.eye(len(inputs), dtype=gram.dtype, device=gram.device)
    gamma = torch.linalg.solve(gram / scale + 1e-10 * eye, torch.ones_like(gram[..., :1]))
    gamma = (gamma / gamma.sum(dim=1, keepdim=True)).to(images)
    return torch.einsum("bm,mbchw->bchw", gamma[..., 0], images)
