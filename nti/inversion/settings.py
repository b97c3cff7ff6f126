"""How an image is inverted."""

from dataclasses import dataclass, fields
from typing import Any

from nti.arguments import a_choice, a_number, a_whole_number, shown
from nti.inversion.ddim import check_noise_at
from nti.inversion.methods import METHODS, MOST, PIVOTS, Method
from nti.inversion.null_text import Rule, published_learning_rate, published_threshold
from nti.model import StableDiffusion

__all__ = ["InversionSettings"]


PIVOT_ITERATIONS = 5
"""About as many as the paper of fixed-point inversion takes (arXiv 2309.04907)."""


PLAIN = ("pivot", "pivot_iterations", "seed", "pull_share", "pull_every")
"""Settings that a table holds as they are."""


FOR_ALL = ("steps", "guidance_scale", "method")
"""Settings that every method reads."""


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
    """A name in `nti.inversion.methods`; `nti methods` prints them."""
    noise_at: str = "target"
    """See `nti.inversion.ddim.ddim_invert`."""
    learning_rate: Rule = published_learning_rate
    """Of the inner iterations, a function of (index, steps)."""
    threshold: Rule = published_threshold
    """Of the early stop, a function of (index, steps)."""
    pivot: str = "ddim"
    """Of methods that start from DDIM inversion: `ddim`; or `fixed-point` or `anderson`, which
    solve each inverse step (see `nti.inversion.fixed_point`)."""
    pivot_iterations: int = PIVOT_ITERATIONS
    """Of each such step."""
    seed: int = 0
    """Of the methods that draw noise."""
    towards_null: float | None = None
    """Of methods that start from psi(P): how far on the arc from there to psi(""), 0 to 1; None: as
    the method's row says."""
    pull_share: float = 1.0
    """Of direct inversion: how much of what a step is short of is added to it."""
    pull_every: int = 1
    """Of direct inversion: at every how many steps."""

    def __post_init__(self) -> None:
        method = METHODS[a_choice("method", self.method, METHODS)]
        why = "; for none at all choose method='ddim'"
        w, far = self.guidance_scale, self.towards_null
        checked = {
            "steps": a_whole_number("steps", self.steps, 1, MOST),
            "inner_steps": a_whole_number("inner_steps", self.inner_steps, 1, MOST, why),
            "guidance_scale": None if w is None else a_number("guidance_scale", w),
            "pivot_iterations": a_whole_number("pivot_iterations", self.pivot_iterations, 1, 100),
            "seed": a_whole_number("seed", self.seed, 0, 2**63 - 1),
            "towards_null": None if far is None else a_number("towards_null", far, 0, 1),
            "pull_share": a_number("pull_share", self.pull_share, 0, 1),
            "pull_every": a_whole_number("pull_every", self.pull_every, 1, MOST),
        }
        for name, value in checked.items():  # a NumPy scalar is a number, too
            object.__setattr__(self, name, value)
        a_choice("pivot", self.pivot, PIVOTS)
        check_noise_at(self.noise_at)
        for name in ("learning_rate", "threshold"):
            if not callable(rule := getattr(self, name)):
                raise ValueError(
                    f"{name}: got {shown(rule)}, expected a function of (index, steps), such as"
                    f" lambda index, steps: {shown(rule)}"
                )
        self._check_reads(method)
        if self.pivot == "ddim" and self.pivot_iterations != PIVOT_ITERATIONS:
            raise ValueError(
                f"pivot_iterations: got {self.pivot_iterations} for the pivot ddim, which has none:"
                " choose pivot='fixed-point' or 'anderson'"
            )
        if self.pivot != "ddim" and self.noise_at != "target":
            raise ValueError(
                f"noise_at: got {self.noise_at!r} for the pivot {self.pivot}, expected 'target': a"
                " fixed point has the noise of where it arrives"
            )

    def _check_reads(self, method: Method) -> None:
        """Refuse a setting that the method does not read, and that is not as it is by default."""
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if name in FOR_ALL or name in method.settings or value == field.default:
                continue
            readers = [row.name for row in METHODS.values() if name in row.settings]
            raise ValueError(
                f"{name}: got {shown(value)} for {method.name}, which does not read it; it is a"
                f" setting of {', '.join(readers)}"
            )

    @property
    def row(self) -> Method:
        """The method's."""
        return METHODS[self.method]

    def start(self, guidance_scale: float) -> float:
        """Of methods that start from psi(P): how far on the arc from there to psi("")."""
        own = self.row.guided_start
        if self.towards_null is not None or not own:
            return self.towards_null or 0.0
        return 1.0 if guidance_scale <= own else own / guidance_scale

    def table(self, model: StableDiffusion) -> dict[str, Any]:
        """Return all that was chosen as JSON can hold it, each rule as T numbers."""
        steps = self.steps
        w = float(
            model.config.guidance_scale if self.guidance_scale is None else self.guidance_scale
        )
        return {
            "method": self.method,
            "steps": steps,
            "guidance_scale": w,
            "inner_steps": self.inner_steps,
            "noise_at": self.noise_at,
            "learning_rate": _tabulated("learning_rate", self.learning_rate, steps),
            "threshold": _tabulated("threshold", self.threshold, steps),
            "towards_null": self.start(w),
            **{name: getattr(self, name) for name in PLAIN},
        }


def _tabulated(name: str, rule: Rule, steps: int) -> list[float]:
    return [a_number(f"{name}({i}, {steps})", rule(i, steps)) for i in range(steps)]
