"""The single step, as pure functions of tensors: the noise, guided and under control, and one
iteration of null-text optimization.

Only the null embedding learns. An iteration costs one forward pass of the unconditional branch and
one backward pass to the embedding: the weights are frozen, and the conditional noise is computed
once a timestep by the caller.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nti.autocast import without_autocast
from nti.networks.control import AttentionControl, MapHook
from nti.networks.unet import Beginning, UNet
from nti.sampling.schedule import Schedule, StepCoefficients, ddim_step, noise_of_velocity
from nti.vjp import vjp

__all__ = [
    "AdamState",
    "Begun",
    "IterationInputs",
    "IterationResult",
    "Noise",
    "NoiseWithBeginning",
    "begin",
    "begun_by",
    "controlled_noise",
    "guided_noise",
    "guided_step",
    "noise",
    "null_text_iteration",
]

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True, eq=False)
class Begun:
    """Latents z_t at a timestep t, and what a network computes of both before it sees a prompt.

    It is good for that network and that timestep alone.
    """

    latent: Tensor
    """(B, 4, h, w), as it was given."""
    network: Beginning


Noise = Callable[[Any, Tensor, Tensor], Tensor]
"""eps_theta: latents (B, 4, h, w), with additional channels after them where the network takes
such; timesteps (B,) or one for all; contexts (B, 77, C) -> noise (B, 4, h, w) in their dtype.

The algorithms hand it what `begin` returns, which is the latents for any function but a
`NoiseWithBeginning`."""


@dataclass(frozen=True)
class NoiseWithBeginning:
    """eps_theta that takes latents, or what `begin` made of them for several prompts."""

    run: Noise
    begin: Callable[[Tensor, Tensor], Begun]
    """(latent, timestep) -> what all prompts there share."""

    def __call__(self, latent: Tensor | Begun, timestep: Tensor, context: Tensor) -> Tensor:
        """Run."""
        return self.run(latent, timestep, context)


def begin(noise: Noise, latent: Tensor, timestep: Tensor) -> Tensor | Begun:
    """Return what to hand to `noise` in the latents' place, for several prompts at this timestep.

    A `NoiseWithBeginning` computes here, once, what the prompt has no part in. For any other
    function it is the latents themselves.
    """
    return noise.begin(latent, timestep) if isinstance(noise, NoiseWithBeginning) else latent


def begun_by(unet: UNet, latent: Tensor, timestep: Tensor) -> Begun:
    """Run a network on latents (B, 4, h, w) as far as it gets without a prompt."""
    return Begun(latent, unet.begin(*_given(unet, latent, timestep)))


def noise(unet: UNet, latent: Tensor | Begun, timestep: Tensor, context: Tensor) -> Tensor:
    """eps_theta(z_t, t, C).

    Args:
        unet: the network, which may compute in half precision.
        latent: z_t (B, 4, h, w), float32 or float64; after it, along the channels, what the
            network takes besides (`UNetConfig.additional_channels`). Or the same as `begun_by`
            this network at this timestep.
        timestep: t, int64, one for all or (B,).
        context: token states (B, 77, C).

    Returns:
        (B, 4, h, w) in the latent's dtype, contiguous. Differentiable in the latent and the
        context.

    """
    if not isinstance(latent, Begun):
        return controlled_noise(unet, latent, timestep, context, None)[0]
    x, t = _given(unet, latent.latent, timestep)
    predicted, _ = unet(x, t, context.to(x.dtype), begun=latent.network)
    return _as_noise(unet, predicted, latent.latent, t)


def controlled_noise(
    unet: UNet,
    latent: Tensor,
    timestep: Tensor,
    context: Tensor,
    control: AttentionControl | None,
    hook: MapHook | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Like `noise` under control; also returns the word maps (R, W, h', w') that it asks for.

    `hook` sees full attention maps: see `nti.networks.control.MapHook`.
    """
    x, t = _given(unet, latent, timestep)
    predicted, maps = unet(x, t, context.to(x.dtype), control, hook)
    return _as_noise(unet, predicted, latent, t), maps


def _given(unet: UNet, latent: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
    """Latents in the network's dtype, and a timestep for each (B,)."""
    t = timestep.to(latent.device).expand(latent.shape[0])
    return latent.to(unet.conv_in.weight.dtype), t


def _as_noise(unet: UNet, predicted: Tensor, latent: Tensor, t: Tensor) -> Tensor:
    """Return eps in the latent's dtype.

    Here alone a v-prediction becomes eps, outside of the network and in the latent's precision.
    """
    # The network's own layout would go on into the latents: one that was saved and read again,
    # which is contiguous, would then be computed with other roundings.
    predicted = predicted.to(latent.dtype).contiguous()
    process = unet.schedule
    if process is None or process.prediction == "epsilon":
        return predicted
    return noise_of_velocity(predicted, latent[:, : predicted.shape[1]], t, process)


def guided_noise(eps_uncond: Tensor, eps_cond: Tensor, guidance_scale: float | Tensor) -> Tensor:
    """Classifier-free guidance, eps_u + w (eps_c - eps_u) (null-text paper, section 3.1)."""
    return eps_uncond + guidance_scale * (eps_cond - eps_uncond)


def guided_step(
    noise: Noise,
    latent: Tensor,
    timestep: Tensor,
    uncond: Tensor,
    cond: Tensor,
    coefficients: StepCoefficients,
    guidance_scale: float | Tensor,
) -> Tensor:
    """z_t -> z_{t-1} (B, 4, h, w) by one guided DDIM step.

    Args:
        noise: eps_theta.
        latent: z_t (B, 4, h, w).
        timestep: t.
        uncond: the null embedding of this timestep (B, 77, C).
        cond: the prompts' token states (B, 77, C).
        coefficients: of the DDIM step.
        guidance_scale: w.

    """
    eps = noise(torch.cat([latent, latent]), timestep, torch.cat([uncond, cond]))
    eps_uncond, eps_cond = eps.chunk(2)
    return ddim_step(latent, guided_noise(eps_uncond, eps_cond, guidance_scale), coefficients)


@dataclass(frozen=True, eq=False)
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


@dataclass(frozen=True, eq=False)
class IterationInputs:
    """Everything that one inner iteration reads, of B images at once.

    All are tensors on one device, so that one graph serves every iteration.
    """

    uncond: Tensor
    """The null embeddings that learn (B, 77, C), float32 or float64."""
    adam: AdamState
    """Their optimizer's state."""
    active: Tensor
    """(B,) bool; an image that has stopped keeps its embedding, moments and count."""
    latent: Tensor
    """z_t, where sampling stands (B, 4, h, w)."""
    timestep: Tensor
    """t, 0-d int64."""
    eps_cond: Tensor
    """The conditional noise at z_t (B, 4, h, w)."""
    target: Tensor
    """The pivot's z_{t-1} (B, 4, h, w)."""
    coefficients: StepCoefficients
    """Of the DDIM step."""
    guidance_scale: Tensor
    """w, 0-d."""
    learning_rate: Tensor
    """Of Adam, 0-d."""
    begun: Begun | None = None
    """What `begin` made of the latent and the timestep, for all iterations there; None: each begins
    for itself."""

    @property
    def point(self) -> Tensor | Begun:
        """What eps_theta is handed: the latent, or what was begun of it."""
        return self.latent if self.begun is None else self.begun

    @classmethod
    def first(
        cls,
        uncond: Tensor,
        latent: Tensor,
        schedule: Schedule,
        index: int,
        *,
        eps_cond: Tensor,
        target: Tensor,
        guidance_scale: float,
        learning_rate: float,
        begun: Tensor | Begun | None = None,
    ) -> "IterationInputs":
        """Return the inputs of a timestep's first iteration: a fresh optimizer, all images active.

        `index` is the timestep's place in the schedule, and `begun` what `begin` returned; the rest
        is as above.
        """
        return cls(
            uncond=uncond,
            adam=AdamState.fresh(uncond),
            active=torch.ones(len(uncond), dtype=torch.bool, device=uncond.device),
            latent=latent,
            timestep=schedule.timestep(index, latent),
            eps_cond=eps_cond,
            target=target,
            coefficients=schedule.coefficients(index).to(latent),
            guidance_scale=latent.new_full((), guidance_scale),
            learning_rate=latent.new_full((), learning_rate),
            begun=begun if isinstance(begun, Begun) else None,
        )


@dataclass(frozen=True, eq=False)
class IterationResult:
    """What one inner iteration leaves."""

    uncond: Tensor
    """The new embeddings (B, 77, C)."""
    adam: AdamState
    """The new state of their optimizer."""
    losses: Tensor
    """(B,) before the update: the mean squared error of the guided step against the target."""
    reached: Tensor
    """Where that step led, before the update (B, 4, h, w)."""


@without_autocast  # the backward pass, too
def null_text_iteration(noise: Noise, x: IterationInputs) -> IterationResult:
    """One inner iteration of Algorithm 1 (null-text inversion paper, eq. 3).

    `noise` is eps_theta; its gradient is taken in the context alone.
    """
    eps_uncond, backward = vjp(lambda uncond: noise(x.point, x.timestep, uncond), x.uncond)
    eps = guided_noise(eps_uncond, x.eps_cond, x.guidance_scale)
    reached = ddim_step(x.latent, eps, x.coefficients)
    error = reached - x.target
    losses = error.square().flatten(1).mean(dim=1)
    # dL/d eps_uncond in closed form. It is near 1e-8, so it goes through the network normalised,
    # where half precision can hold it, and its scale comes back in the embedding's own precision.
    of_eps = x.coefficients.eps.to(error) * (1 - x.guidance_scale)
    cotangent = error * (of_eps * 2 / error[0].numel())
    scale = (
        cotangent.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(error.dtype).tiny)
    )
    (gradient,) = backward(cotangent / scale)
    updated, adam = _adam(x.uncond, gradient * scale[..., 0], x.adam, x.learning_rate)
    keep = x.active[:, None, None]
    return IterationResult(
        torch.where(keep, updated, x.uncond),
        AdamState(
            torch.where(keep, adam.mean, x.adam.mean),
            torch.where(keep, adam.square, x.adam.square),
            torch.where(x.active, adam.count, x.adam.count),
        ),
        losses,
        reached,
    )


def _adam(
    parameter: Tensor, gradient: Tensor, state: AdamState, learning_rate: Tensor
) -> tuple[Tensor, AdamState]:
    """Adam (Kingma and Ba 2014, arXiv 1412.6980, Algorithm 1) without weight decay."""
    count = state.count + 1
    mean = BETA_1 * state.mean + (1 - BETA_1) * gradient
    square = BETA_2 * state.square + (1 - BETA_2) * gradient.square()
    unbiased_mean = mean / (1 - BETA_1**count)[:, None, None]
    unbiased_square = square / (1 - BETA_2**count)[:, None, None]
    step = learning_rate * unbiased_mean / (unbiased_square.sqrt() + EPSILON)
    return parameter - step, AdamState(mean, square, count)
