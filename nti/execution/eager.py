"""The steps as they are: PyTorch launches each op when it comes to it."""

from functools import partial

from torch import Tensor

from nti.execution.steps import Steps
from nti.networks.control import AttentionControl
from nti.networks.unet import UNet
from nti.sampling.step import (
    NoiseWithBeginning,
    begun_by,
    controlled_noise,
    guided_step,
    noise,
    null_text_iteration,
)

__all__ = ["eager_steps", "noise_of"]


def noise_of(unet: UNet) -> NoiseWithBeginning:
    """Return eps_theta of a network."""
    return NoiseWithBeginning(partial(noise, unet), partial(begun_by, unet))


def eager_steps(unet: UNet) -> Steps:
    """Return the steps of a network."""
    eps = noise_of(unet)

    def controlled(
        latent: Tensor, timestep: Tensor, context: Tensor, control: AttentionControl | None
    ) -> tuple[Tensor, Tensor | None]:
        return controlled_noise(unet, latent, timestep, context, control)

    return Steps(
        unet=unet,
        noise=eps,
        guided_step=partial(guided_step, eps.run),
        controlled_noise=controlled,
        null_text_iteration=partial(null_text_iteration, eps.run),
    )
