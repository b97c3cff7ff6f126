"""Proximal guidance: an edit is guided only where its prompt makes much of a difference (Han et al.
2023, arXiv 2306.05414).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nti.arguments import a_choice, a_number, a_whole_number
from nti.sampling.step import guided_noise

__all__ = ["Proximal"]

NORMS = ("l0", "l1")


@dataclass(frozen=True)
class Proximal:
    """eps_u + w prox(eps_c - eps_u), and perhaps a pull towards the source where that is nothing.

    ValueError for a number or a name that cannot be.
    """

    norm: str = "l0"
    """`l0` keeps differences above the threshold as they are, `l1` less the threshold."""
    quantile: float = 0.7
    """The threshold: this quantile of abs(eps_c - eps_u) over an edit's latent."""
    pull_below: int = 0
    """The timestep below which what is not guided goes back to the source's latent (inversion
    guidance); 0: never, as in the authors' published runs. Their paper has 400."""
    radius: int = 1
    """Latent positions by which what is guided is widened before that."""

    def __post_init__(self) -> None:
        a_choice("norm", self.norm, NORMS)
        checked = {
            "quantile": a_number("quantile", self.quantile, 0, 1),
            "pull_below": a_whole_number("pull_below", self.pull_below, 0),
            "radius": a_whole_number("radius", self.radius, 0, 64),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def noise(self, eps_uncond: Tensor, eps_cond: Tensor, guidance_scale: float) -> Tensor:
        """Return the guided noise (E, 4, h, w), each edit with a threshold of its own."""
        difference, kept = self._split(eps_uncond, eps_cond)
        if self.norm == "l1":
            difference = difference.sign() * (difference.abs() - self._threshold(difference))
        shrunk = torch.where(kept, difference, 0.0)
        return guided_noise(eps_uncond, eps_uncond + shrunk, guidance_scale)

    def pulled(
        self, edits: Tensor, source: Tensor, eps_uncond: Tensor, eps_cond: Tensor, timestep: int
    ) -> Tensor:
        """Return the edits after a step, the source's latent where the step was not guided.

        Args:
            edits: (E, 4, h, w), after the step.
            source: (1, 4, h, w), likewise.
            eps_uncond: (E, 4, h, w), of the step.
            eps_cond: likewise.
            timestep: the one that the step left.

        """
        if timestep >= self.pull_below:
            return edits
        _, kept = self._split(eps_uncond, eps_cond)
        size = 2 * self.radius + 1
        wide = F.max_pool2d(kept.to(edits.dtype), size, 1, self.radius) > 0
        return torch.where(wide, edits, source)

    def _split(self, eps_uncond: Tensor, eps_cond: Tensor) -> tuple[Tensor, Tensor]:
        """Return eps_c - eps_u, and where it is above the threshold."""
        difference = eps_cond - eps_uncond
        return difference, difference.abs() > self._threshold(difference)

    def _threshold(self, difference: Tensor) -> Tensor:
        """(E, 1, 1, 1); 0 for the quantile 0, which is plain guidance."""
        flat = difference.abs().flatten(1)
        found = flat.quantile(self.quantile, dim=1) if self.quantile else flat.new_zeros(len(flat))
        return found[:, None, None, None]
