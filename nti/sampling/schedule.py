"""The noise schedule and the deterministic steps along it (DDIM, Song et al. 2020, arXiv
2010.02502).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nti.arguments import a_number
from nti.config import ScheduleConfig

__all__ = [
    "Schedule",
    "StepCoefficients",
    "alpha_bars",
    "ddim_inverse_step",
    "ddim_step",
    "noise_of_velocity",
    "noised",
]


def alpha_bars(config: ScheduleConfig, device: torch.device | None = None) -> Tensor:
    """alpha_bar_t, the product of (1 - beta) up to t, for every training step: (train_steps,)
    float64.
    """
    power = 0.5 if config.beta_schedule == "scaled_linear" else 1.0
    spaced = torch.linspace(
        config.beta_start**power,
        config.beta_end**power,
        config.train_steps,
        dtype=torch.float64,
        device=device,
    )
    return torch.cumprod(1.0 - spaced ** (1 / power), dim=0)


def noise_of_velocity(
    velocity: Tensor, latent: Tensor, timestep: Tensor, config: ScheduleConfig
) -> Tensor:
    """Return eps = sqrt(alpha_bar_t) v + sqrt(1 - alpha_bar_t) z_t (Salimans and Ho 2022, arXiv
    2202.00512, appendix D), (B, 4, h, w).

    Args:
        velocity: v (B, 4, h, w), in the latent's dtype.
        latent: z_t (B, 4, h, w), float32 or float64.
        timestep: t (B,) int64.
        config: of the process that v was learnt along.

    """
    # Made anew each time, where the step runs: a table kept with the weights would be rounded with
    # them to half precision.
    alpha_bar = alpha_bars(config, latent.device)[timestep][:, None, None, None]
    return alpha_bar.sqrt().to(latent) * velocity + (1 - alpha_bar).sqrt().to(latent) * latent


@dataclass(frozen=True)
class StepCoefficients:
    """A DDIM step is linear: z_{t-1} = latent * z_t + eps * eps_theta; 0-d float64."""

    latent: Tensor
    eps: Tensor

    def to(self, like: Tensor) -> "StepCoefficients":
        """Return them on a tensor's device and in its dtype."""
        return StepCoefficients(self.latent.to(like), self.eps.to(like))


@dataclass(frozen=True)
class Schedule:
    """`steps` timesteps of the training schedule, in sampling order: index 0 is the noisiest."""

    timesteps: tuple[int, ...]
    """981, 961, ..., 21, 1 for 50 steps."""
    alpha_bar: Tensor
    """alpha_bar of each timestep, (steps,) float64."""
    alpha_bar_next: Tensor
    """alpha_bar where each step arrives, (steps,) float64; the last arrives at alpha_bar[0], not at
    1.
    """
    eta: float = 0.0
    """How much of each step is noise: 0 is DDIM, 1 the DDPM sampler (DDIM eq. 16)."""

    @classmethod
    def create(cls, config: ScheduleConfig, steps: int, *, eta: float = 0.0) -> "Schedule":
        """Space `steps` timesteps by `train_steps // steps`, offset 1.

        Raises ValueError for a number that would reach timestep `train_steps`, which was never
        trained.
        """
        if not 1 <= steps < config.train_steps:
            raise ValueError(f"steps: got {steps}, expected 1 to {config.train_steps - 1}")
        stride = config.train_steps // steps
        first = stride * (steps - 1) + 1
        timesteps = tuple(range(first, 0, -stride))
        table = alpha_bars(config)
        alpha_bar = table[list(timesteps)]
        return cls(timesteps, alpha_bar, torch.cat([alpha_bar[1:], table[:1]]), eta)

    @property
    def steps(self) -> int:
        """The number of steps T."""
        return len(self.timesteps)

    def first_step(self, strength: float, *, fewest: int = 0) -> int:
        """Return the step at which sampling from a noised image starts (SDEdit, Meng et al. 2021,
        arXiv 2108.01073): int(steps * strength) steps are left, as in the published pipelines.

        Raises ValueError for a share of the steps that is none, or that leaves too few.
        """
        count = int(self.steps * a_number("strength", strength, 0, 1, ", a share of the steps"))
        if count < fewest:
            raise ValueError(
                f"strength: got {strength} of {self.steps} steps, which is less than a step,"
                f" expected {1 / self.steps:g} to 1"
            )
        return self.steps - count

    def timestep(self, index: int, like: Tensor) -> Tensor:
        """Return timestep `index` as a 0-d int64 tensor on a tensor's device.

        A Python number would become part of a graph that serves all timesteps.
        """
        return torch.full((), self.timesteps[index], dtype=torch.int64, device=like.device)

    def coefficients(self, index: int) -> StepCoefficients:
        """Return the step that leaves timestep `index`, without the noise that it adds (DDIM eq.
        12).
        """
        start, end = self.alpha_bar[index], self.alpha_bar_next[index]
        scale = (end / start).sqrt()
        to_end = (1 - end - self.sigma(index) ** 2).sqrt()
        return StepCoefficients(scale, to_end - scale * (1 - start).sqrt())

    def sigma(self, index: int) -> Tensor:
        """Return the standard deviation of the noise that step `index` adds, 0-d float64 (DDIM eq.
        16).
        """
        start, end = self.alpha_bar[index], self.alpha_bar_next[index]
        return self.eta * ((1 - end) / (1 - start) * (1 - start / end)).sqrt()


def noised(latent: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """z_t = sqrt(alpha_bar) z_0 + sqrt(1 - alpha_bar) noise, in the latent's dtype (DDPM, Ho et al.
    2020, arXiv 2006.11239, eq. 4).

    Args:
        latent: z_0 (B, 4, h, w).
        noise: (B, 4, h, w), or what broadcasts to it.
        alpha_bar: of t, 0-d float64.

    """
    return alpha_bar.sqrt().to(latent) * latent + (1 - alpha_bar).sqrt().to(latent) * noise


def ddim_step(latent: Tensor, eps: Tensor, coefficients: StepCoefficients) -> Tensor:
    """z_t -> z_{t-1}, (B, 4, h, w) in the latent's dtype; the predicted z_0 is not clipped."""
    c = coefficients.to(latent)
    return c.latent * latent + c.eps * eps


def ddim_inverse_step(latent: Tensor, eps: Tensor, coefficients: StepCoefficients) -> Tensor:
    """z_{t-1} -> z_t with the same eps: undoes `ddim_step`."""
    c = coefficients.to(latent)
    return (latent - c.eps * eps) / c.latent
