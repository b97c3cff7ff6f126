"""Count the passes through a UNet that an algorithm takes, image by image."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nti import StableDiffusion
from nti.networks.control import AttentionControl
from nti.sampling.schedule import StepCoefficients
from nti.sampling.step import IterationInputs, IterationResult, noise

__all__ = ["Passes", "counting", "gflop_of"]


@dataclass
class Passes:
    """How often the UNet was passed, by one image's latent."""

    forward: int = 0
    backward: int = 0
    """To the embedding."""


def counting(model: StableDiffusion) -> tuple[StableDiffusion, Passes]:
    """Return the same model, whose steps count, and the count.

    Images that have stopped are not counted, though a batch computes them.
    """
    steps, count = model.steps, Passes()

    def counted_noise(latent: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        count.forward += len(latent)
        return steps.noise(latent, timestep, context)

    def guided_step(
        latent: Tensor,
        timestep: Tensor,
        uncond: Tensor,
        cond: Tensor,
        coefficients: StepCoefficients,
        guidance_scale: Tensor,
    ) -> Tensor:
        count.forward += 2 * len(latent)
        return steps.guided_step(latent, timestep, uncond, cond, coefficients, guidance_scale)

    def controlled_noise(
        latent: Tensor, timestep: Tensor, context: Tensor, control: AttentionControl | None
    ) -> tuple[Tensor, Tensor | None]:
        count.forward += len(latent)
        return steps.controlled_noise(latent, timestep, context, control)

    def iteration(x: IterationInputs) -> IterationResult:
        count.forward += int(x.active.sum())
        count.backward += int(x.active.sum())
        return steps.null_text_iteration(x)

    counted = dataclasses.replace(
        steps,
        noise=counted_noise,
        guided_step=guided_step,
        controlled_noise=controlled_noise,
        null_text_iteration=iteration,
    )
    parts = (model.config, model.unet, model.vae, model.text, model.tokenizer)
    return StableDiffusion(*parts, counted), count


def gflop_of(model: StableDiffusion) -> tuple[float, float]:
    """Return what a forward and a backward pass of one image take, in GFLOP."""
    config, like = model.config, {"device": model.device, "dtype": model.dtype}
    side = config.image_size // config.vae.downsampling
    latent = torch.zeros(1, config.unet.latent_channels, side, side, **like)
    context = torch.zeros(1, config.text.context_length, config.unet.context_dim, **like)
    context.requires_grad_()
    timestep = torch.tensor(1, device=model.device)
    unet = model.unet.with_backend("reference")  # the counter does not know other ops
    with sdpa_kernel(SDPBackend.MATH):  # attention as its products
        with FlopCounterMode(display=False) as forward:
            eps = noise(unet, latent, timestep, context)
        with FlopCounterMode(display=False) as backward:
            torch.autograd.grad(eps.sum(), context)
    return forward.get_total_flops() / 1e9, backward.get_total_flops() / 1e9
