"""What the tests of editors that train look at."""

from torch import Generator, Tensor

from nti import Inversion, StableDiffusion
from nti.editing.fine_tune import all_timesteps, noise_loss
from nti.inversion.noised import draw

__all__ = ["error", "loss_of", "weights_of"]


def loss_of(model: StableDiffusion, latent: Tensor, context: Tensor) -> float:
    """The mean loss over eight draws that no training has seen."""
    schedule, generator = all_timesteps(model), Generator().manual_seed(99)
    losses = [
        noise_loss(model.unet, latent, context, schedule, index, draw(generator, 1, latent)[0])
        for index in range(60, 999, 120)
    ]
    return float(sum(losses)) / len(losses)


def weights_of(model: StableDiffusion) -> dict[str, Tensor]:
    """A copy of the UNet's weights."""
    return {name: weight.clone() for name, weight in model.unet.state_dict().items()}


def error(latents: Tensor, inversion: Inversion) -> list[float]:
    """The distance of each edit's last latent from the image's."""
    difference = latents[-1] - inversion.pivot[-1].to(latents)
    return difference.square().mean(dim=(1, 2, 3)).sqrt().tolist()
