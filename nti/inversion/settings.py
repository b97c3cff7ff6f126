"""How an image is inverted."""

from dataclasses import dataclass
from typing import Any

from nti.arguments import a_choice, a_number, a_whole_number, shown
from nti.inversion.ddim import check_noise_at
from nti.inversion.inversion import METHODS
from nti.inversion.null_text import Rule, published_learning_rate, published_threshold
from nti.model import StableDiffusion

__all__ = ["InversionSettings"]


MOST = 10_000
"""Of timesteps, and of iterations at one of them."""


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
        method = a_choice("method", self.method, METHODS)
        why = "; for none at all choose method='ddim'"
        fewest = 1 if method == "null-text" else 0
        w = self.guidance_scale
        checked = {
            "steps": a_whole_number("steps", self.steps, 1, MOST),
            "inner_steps": a_whole_number("inner_steps", self.inner_steps, fewest, MOST, why),
            "guidance_scale": None if w is None else a_number("guidance_scale", w),
        }
        for name, value in checked.items():  # a NumPy scalar is a number, too
            object.__setattr__(self, name, value)
        check_noise_at(self.noise_at)
        for name in ("learning_rate", "threshold"):
            if not callable(rule := getattr(self, name)):
                raise ValueError(
                    f"{name}: got {shown(rule)}, expected a function of (index, steps), such as"
                    f" lambda index, steps: {shown(rule)}"
                )

    def table(self, model: StableDiffusion) -> dict[str, Any]:
        """Return all that was chosen as JSON can hold it, each rule as T numbers."""
        steps, w = self.steps, self.guidance_scale
        return {
            "method": self.method,
            "steps": steps,
            "guidance_scale": float(model.config.guidance_scale if w is None else w),
            "inner_steps": self.inner_steps,
            "noise_at": self.noise_at,
            "learning_rate": _tabulated("learning_rate", self.learning_rate, steps),
            "threshold": _tabulated("threshold", self.threshold, steps),
        }


def _tabulated(name: str, rule: Rule, steps: int) -> list[float]:
    return [a_number(f"{name}({i}, {steps})", rule(i, steps)) for i in range(steps)]
