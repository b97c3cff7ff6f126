"""The `Inversion`: what inverting an image leaves behind, saved as one safetensors file and read
again.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nti.image import Placement

__all__ = ["GENERATED", "METHODS", "Inversion", "InversionFileError"]

METHODS = ("null-text", "negative-prompt", "ddim")
"""What `nti.invert` knows."""

GENERATED = "generated"
"""The method of an inversion that `nti.generate` made, without an image."""

FORMAT = "nti-inversion-1"
"""Stands in the file's metadata; another number means another meaning of the tensors."""

TENSORS = ("uncond", "pivot", "latents", "losses")
WORDS = ("prompt", "method", "guidance_scale", "model_name", "placement")


class InversionFileError(ValueError):
    """A file that is no saved inversion; the message says what was found instead."""


@dataclass(frozen=True, eq=False)
class Inversion:
    """An inverted image, or a generated one; arrays in sampling order.

    Index 0 is z_T, timestep 981 of 50 steps.
    """

    prompt: str
    """The source prompt P."""
    method: str
    """`null-text`, `negative-prompt`, `ddim` or `generated`."""
    guidance_scale: float
    """w, which the embeddings were made for and the latents were sampled at."""
    model_name: str
    """The configuration's name; an inversion is of use to that model alone."""
    uncond: Tensor
    """The null embedding of each timestep (T, 77, C), float32 or float64."""
    pivot: Tensor
    """z*_T .. z*_0, the DDIM inversion at guidance 1: (T + 1, 4, h, w). Of a generated image the
    same as `latents`."""
    latents: Tensor
    """z_T .. z_0, the latents that guided sampling with the embeddings visits: (T + 1, 4, h, w)."""
    losses: Tensor
    """Each inner iteration's loss (T, N), NaN where it had stopped; (T, 0) for other methods."""
    placement: Placement | None = None
    """Where the image lies in its original, for `nti.paste_back`; None for a tensor."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.guidance_scale):
            raise ValueError(f"guidance_scale: got {self.guidance_scale}, expected a finite number")
        steps = self.uncond.shape[0]
        lengths = (len(self.pivot), len(self.latents), len(self.losses))
        if self.uncond.ndim != 3 or lengths != (steps + 1, steps + 1, steps):
            raise ValueError(
                f"inversion: got {steps} embeddings with pivot, latents and losses of length"
                f" {lengths}, expected {(steps + 1, steps + 1, steps)}"
            )

    @property
    def steps(self) -> int:
        """The number of timesteps T."""
        return self.uncond.shape[0]

    def save(self, path: str | Path) -> None:
        """Write the inversion to `path`, whole or not at all, and make its folder."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        header = {name: getattr(self, name) for name in WORDS}
        if self.placement is not None:
            header["placement"] = dataclasses.asdict(self.placement)
        tensors = {name: getattr(self, name).detach().cpu().contiguous() for name in TENSORS}
        part = path.with_name(path.name + ".part")
        save_file(tensors, part, metadata={"format": FORMAT, "inversion": json.dumps(header)})
        part.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> "Inversion":
        """Read an inversion onto the CPU. Raises InversionFileError for a file that is none."""
        path = Path(path)
        if not path.is_file():
            raise InversionFileError(
                f"{path}: no such file; expected an inversion saved by `nti invert`"
            )
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                found = metadata.get("format")
                if found != FORMAT:
                    raise InversionFileError(
                        f"{path}: got a safetensors file of format {found!r}, expected {FORMAT!r}:"
                        f" make it with `nti invert`"
                    )
                tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in TENSORS}
            fields: dict[str, Any] = {**json.loads(metadata["inversion"]), **tensors}
            if fields.get("placement") is not None:
                boxes = {name: tuple(box) for name, box in fields["placement"].items()}
                fields["placement"] = Placement(**boxes)
            return cls(**fields)
        except InversionFileError:
            raise
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InversionFileError(f"{path}: not a saved inversion ({error})") from error

    def __eq__(self, other: object) -> bool:
        """Compare words, numbers and tensors exactly; NaN equals NaN, and nothing else."""
        if not isinstance(other, Inversion):
            return NotImplemented
        return self._words() == other._words() and all(
            _same(getattr(self, name), getattr(other, name)) for name in TENSORS
        )

    def __hash__(self) -> int:
        """Agree with `==`, which compares these first."""
        return hash(self._words())

    def _words(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in WORDS)


def _same(a: Tensor, b: Tensor) -> bool:
    alike = a.dtype == b.dtype and a.shape == b.shape
    return alike and bool(((a == b) | (a.isnan() & b.isnan())).all())
