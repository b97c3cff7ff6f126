"""What all providers are given: a model of random weights and tensors of its shape."""

import dataclasses
from dataclasses import dataclass

import torch
from nti.kernels.backend import resolve_backend
from torch import Tensor, nn

from nti.config import SD_V1, ModelConfig
from nti.model import StableDiffusion, skeletons
from nti.networks.attention import set_backend
from nti.networks.text_encoder import TextEncoder
from nti.networks.tokenizer import Tokenizer
from nti.networks.unet import UNet
from nti.networks.vae import VAE
from nti.sampling.schedule import StepCoefficients

__all__ = ["QUICK", "StepInputs", "random_model", "step_inputs"]

QUICK = dataclasses.replace(
    SD_V1,
    name="a fifth of Stable Diffusion v1's width",
    unet=dataclasses.replace(SD_V1.unet, channels=64),
    vae=dataclasses.replace(SD_V1.vae, channels=32),
    text=dataclasses.replace(SD_V1.text, layers=2),
)
"""For `--quick`: as deep as SD v1, so that all code is timed, and a twentieth of the work."""


def random_model(
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    *,
    whole: bool = False,
    backend: str = "auto",
) -> StableDiffusion:
    """Return the architecture with weights of unit gain, drawn from a seed.

    Without `whole` the autoencoder and the text encoder stay without weights.
    """
    torch.manual_seed(0)
    networks = skeletons(config)
    for name, network in networks.items():
        if name == "unet" or whole:
            network.to(dtype).to_empty(device=device)
            _fill(network)
    unet, vae, text = networks["unet"], networks["vae"], networks["text"]
    set_backend(unet, resolve_backend(backend, device, dtype))
    assert isinstance(unet, UNet) and isinstance(vae, VAE) and isinstance(text, TextEncoder)
    if whole:
        text.restore_buffers(device)
    return StableDiffusion(config, unet, vae, text, Tokenizer())


@torch.no_grad()
def _fill(network: nn.Module) -> None:
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            bound = (3 / parameter[0].numel()) ** 0.5
            parameter.uniform_(-bound, bound)
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)


@dataclass(frozen=True)
class StepInputs:
    """One timestep of one image."""

    latent: Tensor
    timestep: int
    cond: Tensor
    uncond: Tensor
    eps_cond: Tensor
    target: Tensor
    step: StepCoefficients


def step_inputs(model: StableDiffusion, side: int) -> StepInputs:
    """Return the tensors of an inner iteration on an image of `side` pixels."""
    g = torch.Generator().manual_seed(0)
    latent_side = side // model.config.vae.downsampling

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).to(model.device)

    context = (1, model.config.text.context_length, model.config.unet.context_dim)
    cond, uncond = normal(*context), normal(*context)
    latent, target = normal(1, 4, latent_side, latent_side), normal(1, 4, latent_side, latent_side)
    schedule = model.schedule(50)
    index = 25
    with torch.no_grad():
        eps_cond = model.predict_noise(latent, schedule.timesteps[index], cond)
    step = schedule.coefficients(index).to(latent)
    return StepInputs(latent, schedule.timesteps[index], cond, uncond, eps_cond, target, step)
