"""How an image is inverted."""

import math
from dataclasses import dataclass
from typing import Any

from nti.inversion.ddim import check_noise_at
from nti.inversion.inversion import METHODS
from nti.inversion.null_text import Rule, published_learning_rate, published_threshold
from nti.model import StableDiffusion

__all__ = ["InversionSettings"]


@dataclass(frozen=True)
class InversionSettings:
    """How an image is inverted. ValueError for a number or a name that cannot be."""

    steps: int = 50
    """T timesteps."""
    guidance_scale: float | None = None
    """w; None: the model's own (7.5 for SD v1)."""
    inner_steps: int = 10
    """N, at most this many iterations a timestep."""
    method: str = "null-text"
    """`null-text`; or, without optimization, `negative-prompt` (the prompt's own embedding stands
    for the null embedding, arXiv 2305.16807) or `ddim` (psi("") at every timestep)."""
    noise_at: str = "target"
    """See `nti.inversion.ddim.ddim_invert`."""
    learning_rate: Rule = published_learning_rate
    """Of the inner iterations, a function of (index, steps)."""
    threshold: Rule = published_threshold
    """Of the early stop, a function of (index, steps)."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method: got {self.method!r}, expected one of {', '.join(METHODS)}")
        if self.method == "null-text" and self.inner_steps < 1:
            raise ValueError(
                f"inner_steps: got {self.inner_steps}, expected 1 or more;"
                f" for none at all choose method='ddim'"
            )
        check_noise_at(self.noise_at)
        if self.steps < 1:
            raise ValueError(f"steps: got {self.steps}, expected 1 or more")
        for name in ("learning_rate", "threshold"):
            if not callable(rule := getattr(self, name)):
                raise ValueError(
                    f"{name}: got {rule!r}, expected a function of (index, steps), such as"
                    f" lambda index, steps: {rule!r}"
                )
        if self.guidance_scale is not None and not math.isfinite(self.guidance_scale):
            raise ValueError(f"guidance_scale: got {self.guidance_scale}, expected a finite number")

    def table(self, model: StableDiffusion) -> dict[str, Any]:
        """Return all that was chosen as JSON can hold it, each rule as T numbers."""
        steps, w = self.steps, self.guidance_scale
        return {
            "method": self.method,
            "steps": steps,
            "guidance_scale": float(model.config.guidance_scale if w is None else w),
            "inner_steps": self.inner_steps,
            "noise_at": self.noise_at,
            "learning_rate": [float(self.learning_rate(i, steps)) for i in range(steps)],
            "threshold": [float(self.threshold(i, steps)) for i in range(steps)],
        }
