"""The single step, as pure functions of tensors: guided noise, and one iteration of null-text
optimization.

Only the null embedding learns. An iteration costs one forward pass of the unconditional branch and
one backward pass to the embedding: the weights are frozen, and the conditional noise is computed
once a timestep by the caller.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nti.sampling.schedule import StepCoefficients, ddim_step
from nti.vjp import vjp

__all__ = ["AdamState", "guided_noise", "guided_step", "null_text_iteration"]

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


def guided_noise(eps_uncond: Tensor, eps_cond: Tensor, guidance_scale: float | Tensor) -> Tensor:
    """Classifier-free guidance, eps_u + w (eps_c - eps_u) (null-text paper, section 3.1)."""
    return eps_uncond + guidance_scale * (eps_cond - eps_uncond)


def guided_step(
    predict: Callable[[Tensor, Tensor], Tensor],
    latent: Tensor,
    uncond: Tensor,
    cond: Tensor,
    coefficients: StepCoefficients,
    guidance_scale: float | Tensor,
) -> Tensor:
    """z_t -> z_{t-1} (B, 4, h, w) by one guided DDIM step.

    Args:
        predict: latents (2B, 4, h, w), contexts (2B, 77, C) -> eps_theta at this timestep.
        latent: z_t (B, 4, h, w).
        uncond: the null embedding of this timestep (B, 77, C).
        cond: the prompts' token states (B, 77, C).
        coefficients: of the DDIM step.
        guidance_scale: w.

    """
    eps = predict(torch.cat([latent, latent]), torch.cat([uncond, cond]))
    eps_uncond, eps_cond = eps.chunk(2)
    return ddim_step(latent, guided_noise(eps_uncond, eps_cond, guidance_scale), coefficients)


@dataclass(frozen=True)
class AdamState:
    """Adam's moments of a batch of embeddings (B, 77, C) and each image's step count (B,)."""

    mean: Tensor
    square: Tensor
    count: Tensor

    @classmethod
    def fresh(cls, uncond: Tensor) -> "AdamState":
        """Return zero moments for embeddings (B, 77, C).

        Two tensors of zeros: a compiled step has to be compiled again when one is not the other.
        """
        mean, square = torch.zeros_like(uncond), torch.zeros_like(uncond)
        return cls(mean, square, uncond.new_zeros(uncond.shape[0]))


def null_text_iteration(
    predict: Callable[[Tensor], Tensor],
    uncond: Tensor,
    adam: AdamState,
    latent: Tensor,
    eps_cond: Tensor,
    target: Tensor,
    coefficients: StepCoefficients,
    guidance_scale: float | Tensor,
    learning_rate: float | Tensor,
    active: Tensor,
) -> tuple[Tensor, AdamState, Tensor]:
    """One inner iteration of Algorithm 1 (null-text inversion paper, eq. 3) for B images at once.

    Args:
        predict: embedding (B, 77, C) -> eps_theta(z_t, t, embedding) (B, 4, h, w) in the latent's
            dtype.
        uncond: the null embeddings (B, 77, C), float32 or float64.
        adam: their optimizer state.
        latent: z_t, where sampling stands (B, 4, h, w).
        eps_cond: the conditional noise at z_t (B, 4, h, w).
        target: the pivot's z_{t-1} (B, 4, h, w).
        coefficients: of the DDIM step.
        guidance_scale: w.
        learning_rate: of Adam.
        active: (B,) bool; an image that has stopped keeps its embedding, moments and count.

    Returns:
        The new embeddings, the new state, and each image's loss (B,) before the update: the mean
        squared error of the guided step against `target`.

    """
    eps_uncond, backward = vjp(predict, uncond)
    error = (
        ddim_step(latent, guided_noise(eps_uncond, eps_cond, guidance_scale), coefficients) - target
    )
    losses = error.square().flatten(1).mean(dim=1)
    # dL/d eps_uncond in closed form. It is near 1e-8, so it goes through the network normalised,
    # where half precision can hold it, and its scale comes back in the embedding's own precision.
    cotangent = error * (coefficients.eps.to(error) * (1 - guidance_scale) * 2 / error[0].numel())
    scale = (
        cotangent.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(error.dtype).tiny)
    )
    (gradient,) = backward(cotangent / scale)
    updated, state = _adam(uncond, gradient * scale[..., 0], adam, learning_rate)
    keep = active[:, None, None]
    return (
        torch.where(keep, updated, uncond),
        AdamState(
            torch.where(keep, state.mean, adam.mean),
            torch.where(keep, state.square, adam.square),
            torch.where(active, state.count, adam.count),
        ),
        losses,
    )


def _adam(
    parameter: Tensor, gradient: Tensor, state: AdamState, learning_rate: float | Tensor
) -> tuple[Tensor, AdamState]:
    """Adam (Kingma and Ba 2014, arXiv 1412.6980, Algorithm 1) without weight decay."""
    count = state.count + 1
    mean = BETA_1 * state.mean + (1 - BETA_1) * gradient
    square = BETA_2 * state.square + (1 - BETA_2) * gradient.square()
    unbiased_mean = mean / (1 - BETA_1**count)[:, None, None]
    unbiased_square = square / (1 - BETA_2**count)[:, None, None]
    step = learning_rate * unbiased_mean / (unbiased_square.sqrt() + EPSILON)
    return parameter - step, AdamState(mean, square, count)
