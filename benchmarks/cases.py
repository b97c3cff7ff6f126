"""What all providers are given: a model of random weights and tensors of its shape."""

import dataclasses

import torch
from nti.kernels.backend import resolve_backend
from torch import Tensor, nn

from nti.config import SD_V1, ModelConfig
from nti.execution.steps import Steps
from nti.model import StableDiffusion, skeletons
from nti.networks.tokenizer import Tokenizer
from nti.networks.unet import UNet
from nti.sampling.schedule import Schedule
from nti.sampling.step import AdamState, IterationInputs, Noise, begin

__all__ = [
    "GUIDANCE",
    "QUICK",
    "begun",
    "moment_after",
    "random_model",
    "random_unet",
    "random_weights",
    "refuse_wrong",
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
    recompute: bool = False,
) -> StableDiffusion:
    """Return the architecture with weights of unit gain, drawn from a seed; its steps are eager.

    Without `whole` it is the UNet alone, which is all that a step needs, and what the text encoder
    imports (open_clip) is not imported.
    """
    vae, text, tokenizer = nn.Identity(), nn.Identity(), None
    if whole:
        networks = skeletons(config)
        vae, text, tokenizer = networks["vae"], networks["text"], Tokenizer()
        random_weights(vae, torch.float32 if dtype == torch.float16 else dtype, device)
        random_weights(text, dtype, device)
        text.restore_buffers(device)
    backend = resolve_backend(backend, device, dtype)
    unet = random_unet(config, dtype, device, backend=backend, recompute=recompute)
    return StableDiffusion(config, unet, vae, text, tokenizer)  # type: ignore[arg-type]


def random_unet(
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    *,
    backend: str = "reference",
    recompute: bool = False,
) -> UNet:
    """Return the UNet alone, with the same weights, in channels last."""
    with torch.device("meta"):
        unet = UNet(config.unet, backend=backend, recompute=recompute)
    random_weights(unet, dtype, device)
    return unet.to(memory_format=torch.channels_last)


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
    network.requires_grad_(False).eval()


def step_inputs(
    config: ModelConfig,
    side: int,
    device: torch.device,
    noise: Noise,
    *,
    seed: int = 0,
) -> IterationInputs:
    """Return the tensors of an inner iteration on an image of `side` pixels, on a noise network."""
    g = torch.Generator().manual_seed(seed)
    latent_side = side // config.vae.downsampling

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).to(device)

    context = (1, config.text.context_length, config.unet.context_dim)
    cond, uncond = normal(*context), normal(*context)
    latent, target = normal(1, 4, latent_side, latent_side), normal(1, 4, latent_side, latent_side)
    schedule, index = Schedule.create(config.schedule, 50), 25
    timestep = schedule.timestep(index, latent)
    with torch.no_grad():
        eps_cond = noise(latent, timestep, cond)
    return IterationInputs(
        uncond=uncond,
        adam=AdamState.fresh(uncond),
        active=torch.ones(1, dtype=torch.bool, device=device),
        latent=latent,
        timestep=timestep,
        eps_cond=eps_cond,
        target=target,
        coefficients=schedule.coefficients(index).to(latent),
        guidance_scale=torch.full((), GUIDANCE, device=device),
        learning_rate=torch.full((), 1e-2, device=device),
    )


def begun(steps: Steps, x: IterationInputs) -> IterationInputs:
    """Return the same inputs with what comes before the prompt, which an inversion computes once a
    timestep.
    """
    return dataclasses.replace(x, begun=begin(steps.noise, x.latent, x.timestep))


def moment_after(steps: Steps, x: IterationInputs) -> Tensor:
    """Make an inner iteration, and read the loss as the early stop does.

    Returns Adam's first moment, a tenth of the gradient. Not the embedding: Adam's first step shows
    the gradient's signs alone.
    """
    made = steps.null_text_iteration(x)
    made.losses.tolist()
    return made.adam.mean


def refuse_wrong(name: str, error: float, dtype: torch.dtype, bound: float) -> None:
    """Raise RuntimeError for a result too far from its peer's: no row on a red check.

    `bound` is float32's; what half precision rounds away over a whole network is far more.
    """
    bound = bound if dtype == torch.float32 else 0.2
    if not error <= bound:
        raise RuntimeError(f"{name}: got an error of {error:.1e}, expected at most {bound:g}")
