"""What the tests of the methods share: settings, and a loop that differentiates by autograd."""

from collections.abc import Callable

from torch import Tensor

from nti import Inversion, StableDiffusion
from nti.inversion.methods import METHODS
from nti.sampling.schedule import ddim_step
from nti.sampling.step import guided_noise, noise

T, N, W = 4, 3, 3.0
PROMPT = "a cat sitting next to a mirror"

Made = Callable[..., Inversion]
"""Inverts by a method, with other settings than T, N and W where they are given."""


class Loop:
    """The parts of a plain loop that differentiates by autograd."""

    def __init__(self, model: StableDiffusion, inversion: Inversion) -> None:
        self.unet, self.schedule = model.unet, model.schedule(T)
        self.cond, self.null = model.encode_text([PROMPT]), model.encode_text([""])
        self.pivot = inversion.pivot[:, None]

    def eps(self, latent: Tensor, i: int, context: Tensor) -> Tensor:
        return noise(self.unet, latent, self.schedule.timestep(i, latent), context)

    def step(self, latent: Tensor, i: int, uncond: Tensor, cond: Tensor) -> Tensor:
        eps = guided_noise(self.eps(latent, i, uncond), self.eps(latent, i, cond), W)
        return ddim_step(latent, eps, self.schedule.coefficients(i))


def read_by(method: str, **settings: object) -> dict[str, object]:
    """Return those of the settings that a method reads; any other is refused."""
    return {k: value for k, value in settings.items() if k in METHODS[method].settings}
