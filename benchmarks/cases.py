"""What all providers are given: a model of random weights and tensors of its shape."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from nti.kernels.backend import resolve_backend
from torch import Tensor, nn

from nti.config import SD_V1, ModelConfig
from nti.model import StableDiffusion, skeletons
from nti.networks.attention import set_backend
from nti.networks.tokenizer import Tokenizer
from nti.networks.unet import Begun, UNet
from nti.sampling.schedule import Schedule, StepCoefficients
from nti.sampling.step import AdamState

__all__ = [
    "GUIDANCE",
    "QUICK",
    "StepInputs",
    "iteration_arguments",
    "moment_after",
    "random_model",
    "random_unet",
    "random_weights",
    "refuse_wrong",
    "shipped_iteration",
    "step_inputs",
]

GUIDANCE = 7.5

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

    Without `whole` it is the UNet alone, which is all that a step needs, and what the text encoder
    imports (open_clip) is not imported.
    """
    vae, text, tokenizer = nn.Identity(), nn.Identity(), None
    if whole:
        networks = skeletons(config)
        vae, text, tokenizer = networks["vae"], networks["text"], Tokenizer()
        random_weights(vae, dtype, device)
        random_weights(text, dtype, device)
        text.restore_buffers(device)
    unet = random_unet(config, dtype, device)
    set_backend(unet, resolve_backend(backend, device, dtype))
    return StableDiffusion(config, unet, vae, text, tokenizer)  # type: ignore[arg-type]


def random_unet(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> UNet:
    """Return the UNet alone, with the same weights."""
    with torch.device("meta"):
        unet = UNet(config.unet)
    random_weights(unet, dtype, device)
    return unet.requires_grad_(False).eval()


@torch.no_grad()
def random_weights(network: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Fill a network from the meta device with weights of unit gain, the same at every call."""
    torch.manual_seed(0)
    network.to(dtype).to_empty(device=device)
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


def step_inputs(
    config: ModelConfig,
    side: int,
    device: torch.device,
    predict: Callable[[Tensor, int, Tensor], Tensor],
    *,
    seed: int = 0,
) -> StepInputs:
    """Return the tensors of an inner iteration on an image of `side` pixels, on a noise network."""
    g = torch.Generator().manual_seed(seed)
    latent_side = side // config.vae.downsampling

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).to(device)

    context = (1, config.text.context_length, config.unet.context_dim)
    cond, uncond = normal(*context), normal(*context)
    latent, target = normal(1, 4, latent_side, latent_side), normal(1, 4, latent_side, latent_side)
    schedule = Schedule.create(config.schedule, 50)
    index = 25
    with torch.no_grad():
        eps_cond = predict(latent, schedule.timesteps[index], cond)
    step = schedule.coefficients(index).to(latent)
    return StepInputs(latent, schedule.timesteps[index], cond, uncond, eps_cond, target, step)


def shipped_iteration(model: StableDiffusion, begun: Begun, x: StepInputs) -> Tensor:
    """Make an inner iteration on a latent that was begun before; see `moment_after`."""
    return moment_after(model.null_text_iteration(begun, *iteration_arguments(x)))


def iteration_arguments(x: StepInputs) -> tuple[Any, ...]:
    """Return what an inner iteration takes after its network."""
    active = torch.ones(1, dtype=torch.bool, device=x.latent.device)
    adam = AdamState.fresh(x.uncond)
    return x.uncond, adam, x.latent, x.eps_cond, x.target, x.step, GUIDANCE, 1e-2, active


def moment_after(result: tuple[Tensor, AdamState, Tensor]) -> Tensor:
    """Return Adam's first moment, a tenth of the gradient; the loss read as the early stop does.

    Not the embedding: Adam's first step shows the gradient's signs alone.
    """
    _, adam, loss = result
    loss.tolist()
    return adam.mean


def refuse_wrong(name: str, error: float, dtype: torch.dtype, bound: float) -> None:
    """Raise RuntimeError for a result too far from its peer's: no row on a red check.

    `bound` is float32's; what half precision rounds away over a whole network is far more.
    """
    bound = bound if dtype == torch.float32 else 0.2
    if not error <= bound:
        raise RuntimeError(f"{name}: got an error of {error:.1e}, expected at most {bound:g}")
