"""The steps that the algorithms are handed, whoever runs them."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from nti.networks.control import AttentionControl
from nti.networks.unet import UNet
from nti.sampling.schedule import StepCoefficients
from nti.sampling.step import IterationInputs, IterationResult, Noise

__all__ = ["ControlledNoise", "GuidedStep", "Iteration", "Steps"]

GuidedStep = Callable[[Tensor, Tensor, Tensor, Tensor, StepCoefficients, Tensor], Tensor]
ControlledNoise = Callable[
    [Tensor, Tensor, Tensor, AttentionControl | None], tuple[Tensor, Tensor | None]
]
Iteration = Callable[[IterationInputs], IterationResult]


@dataclass(frozen=True, eq=False)
class Steps:
    """Four functions of tensors on the UNet's device; `nti.sampling.step` says what they compute.

    Arguments are never changed, and results belong to the caller: no later call overwrites them.
    Calls from several threads do not disturb each other. A gradient goes through results only where
    steps run eagerly; `nti.sampling.step.noise` is for those who need one.
    """

    unet: UNet
    """The network that they compute, as it was loaded."""
    noise: Noise
    """(latent, timestep, context) -> eps. A `NoiseWithBeginning` also takes what its `begin`
    returns. The `null_text_iteration` beside it then has to take it, too."""
    guided_step: GuidedStep
    """(latent, timestep, uncond, cond, coefficients, guidance_scale) -> the next latent."""
    controlled_noise: ControlledNoise
    """(latent, timestep, context, control) -> (eps, word maps or None)."""
    null_text_iteration: Iteration
    """`IterationInputs` -> `IterationResult`."""
    execution: str = "eager"
    """`eager`, `compiled` or `cuda-graph`."""
    one_layout: bool = False
    """Whether every new shape of a batch costs minutes, so that an edit should keep to one."""
