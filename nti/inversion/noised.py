"""Pivots that no network made: the image under random noise.

Noises are drawn on the CPU for one image and shared by a batch, so an image has the same ones
whatever it is inverted with, on every device.
"""

import torch
from torch import Tensor

from nti.sampling.schedule import Schedule, noised

__all__ = ["draw", "independently_noised", "noised_by_one"]


def draw(generator: torch.Generator, count: int, like: Tensor) -> Tensor:
    """Return `count` noises of N(0, 1) for latents (B, 4, h, w): (count, 1, 4, h, w)."""
    noise = torch.randn((count, 1, *like.shape[1:]), generator=generator)
    return noise.to(like.device, like.dtype)


def noised_by_one(latent: Tensor, schedule: Schedule, generator: torch.Generator) -> Tensor:
    """Return the random pivot of the null-text paper's ablation (section 4, Fig. 4).

    z*_t = sqrt(alpha_bar_t) z_0 + sqrt(1 - alpha_bar_t) eps with one eps for all t. z_0 is (B, 4,
    h, w); the pivot, in sampling order, is (T + 1, B, 4, h, w).
    """
    (eps,) = draw(generator, 1, latent)
    return torch.stack([*(noised(latent, eps, a) for a in schedule.alpha_bar), latent])


def independently_noised(latent: Tensor, schedule: Schedule, generator: torch.Generator) -> Tensor:
    """Return latents with an eps for each t (edit-friendly inversion, arXiv 2304.06140, eq. 6).

    Shapes are those of `noised_by_one`.
    """
    noises = draw(generator, schedule.steps, latent)
    pairs = zip(noises, schedule.alpha_bar, strict=True)
    return torch.stack([*(noised(latent, eps, a) for eps, a in pairs), latent])
