"""The `Inversion`: what inverting an image leaves behind."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nti.files import write_file
from nti.fingerprint import Fingerprint
from nti.image import Placement
from nti.inversion import inversion_file
from nti.inversion.inversion_file import OPTIONAL, Header, InversionFileError
from nti.inversion.methods import GENERATED, METHODS, Method, method_of
from nti.inversion.provenance import Provenance
from nti.weights_loader.metadata import printable

__all__ = ["Inversion", "InversionFileError", "Provenance"]

TENSORS = ("uncond", "pivot", "latents", "losses")
WORDS = ("prompt", "method", "guidance_scale", "model_name", "placement", "made")


@dataclass(frozen=True, eq=False)
class Inversion:
    """An inverted image, or a generated one; arrays in sampling order.

    Index 0 is z_T, timestep 981 of 50 steps.
    """

    prompt: str
    """The source prompt P."""
    method: str
    """A name in `nti.inversion.methods`, or `generated`."""
    guidance_scale: float
    """w, which the embeddings were made for and the latents were sampled at."""
    model_name: str
    """The configuration's name; an inversion is of use to that model alone."""
    uncond: Tensor
    """What stands for psi("") at each timestep (T, 77, C), float32 or float64."""
    pivot: Tensor
    """z*_T .. z*_0, what the method's sampling is to follow: (T + 1, 4, h, w). Of a generated image
    the same as `latents`; without a trajectory T + 1 times z_0."""
    latents: Tensor
    """z_T .. z_0, the source's latents, which edits replay: (T + 1, 4, h, w). Most methods visit
    them by guided sampling."""
    losses: Tensor
    """Each inner iteration's loss (T, N), NaN where it had stopped; (T, 0) without iterations."""
    placement: Placement | None = None
    """Where the image lies in its original, for `nti.paste_back`; None for a tensor."""
    made: Provenance | None = None
    """None for a file of format 1, which does not say."""
    weights: Fingerprint | None = None
    """Of the model that it was made with; None for a file of format 1."""
    cond: Tensor | None = None
    """What stands for psi(P) at each timestep (T, 77, C); None: psi(P) itself."""
    offsets: Tensor | None = None
    """What is added to each step of the source (T, 4, h, w); None: nothing."""

    def __post_init__(self) -> None:
        if self.method not in (*METHODS, GENERATED):
            raise ValueError(
                f"method: got {self.method!r}, expected one of {', '.join((*METHODS, GENERATED))}"
            )
        if not math.isfinite(self.guidance_scale):
            raise ValueError(f"guidance_scale: got {self.guidance_scale}, expected a finite number")
        steps = self.uncond.shape[0]
        lengths = (len(self.pivot), len(self.latents), len(self.losses))
        if self.uncond.ndim != 3 or lengths != (steps + 1, steps + 1, steps):
            raise ValueError(
                f"inversion: got {steps} embeddings with pivot, latents and losses of length"
                f" {lengths}, expected {(steps + 1, steps + 1, steps)}"
            )
        if self.pivot.ndim != 4 or self.pivot.shape != self.latents.shape or self.losses.ndim != 2:
            raise ValueError(
                f"inversion: got a pivot {tuple(self.pivot.shape)}, latents"
                f" {tuple(self.latents.shape)} and losses {tuple(self.losses.shape)}, expected"
                " twice (T + 1, 4, h, w), and (T, N)"
            )
        keeps = self.row.keeps
        for name, like, kept in (
            ("cond", self.uncond, keeps == "prompts"),
            ("offsets", self.pivot[1:], "offsets" in keeps),
        ):
            values = getattr(self, name)
            if (values is not None) != kept:
                raise ValueError(
                    f"{name}: got {'none' if kept else 'some'} in an inversion by {self.method},"
                    f" expected {'one for each timestep' if kept else 'none'}: invert the image"
                    " again"
                )
            if values is not None and values.shape != like.shape:
                raise ValueError(f"{name}: got {tuple(values.shape)}, expected {tuple(like.shape)}")
        for name, values in self._tensors().items():
            if not values.is_floating_point() or not _sound(values, nan=name == "losses"):
                raise ValueError(
                    f"{name}: got {values.dtype} with values that are not finite, or of another"
                    " kind, expected finite floating point: invert the image again"
                )

    @property
    def steps(self) -> int:
        """The number of timesteps T."""
        return self.uncond.shape[0]

    @property
    def iterations(self) -> list[int]:
        """How many inner iterations each timestep took: T numbers, 0 for other methods."""
        counts: list[int] = (~self.losses.isnan()).sum(dim=1).tolist()
        return counts

    @property
    def row(self) -> Method:
        """Its method's."""
        return method_of(self.method)

    def save(self, path: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write the inversion to `path`, whole or not at all, and make its folder.

        Args:
            path: of the file; docs/format.md describes it.
            dtype: what embeddings and latents are rounded to, torch.float16 or torch.bfloat16 for
                half the size; None: as they are. They are read as float32.

        Raises:
            OSError: where it cannot be written. An old file is then as it was.
            ValueError: another dtype, or values too large for it.

        """
        write_file(path, self.to_bytes(dtype=dtype))

    def to_bytes(self, *, dtype: torch.dtype | None = None) -> bytes:
        """Return what `save` writes; `dtype` and the ValueError are as there."""
        words = {name: getattr(self, name) for name in WORDS}
        header = Header(**words, iterations=self.iterations)
        return inversion_file.encode(header, self._tensors(), self.weights, dtype)

    @classmethod
    def load(cls, path: str | Path) -> "Inversion":
        """Read an inversion onto the CPU. Raises InversionFileError for a file that is none."""
        header, tensors, weights = inversion_file.read(path)
        fields: dict[str, Any] = {name: getattr(header, name) for name in WORDS} | tensors
        try:
            return cls(**fields, weights=weights)
        except ValueError as error:
            found = printable(str(error))
            raise InversionFileError(f"{path}: not a saved inversion ({found})") from error

    def __eq__(self, other: object) -> bool:
        """Compare words, numbers and tensors exactly; NaN equals NaN, and nothing else."""
        if not isinstance(other, Inversion):
            return NotImplemented
        ours, theirs = self._tensors(), other._tensors()
        return (self._words(), ours.keys()) == (other._words(), theirs.keys()) and all(
            _same(values, theirs[name]) for name, values in ours.items()
        )

    def __hash__(self) -> int:
        """Agree with `==`, which compares these first."""
        return hash(self._words())

    def _tensors(self) -> dict[str, Tensor]:
        """Return those that there are, by name."""
        found = {name: getattr(self, name) for name in (*TENSORS, *OPTIONAL)}
        return {name: values for name, values in found.items() if values is not None}

    def _words(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in WORDS)


def _sound(values: Tensor, *, nan: bool) -> bool:
    finite = values.isfinite()
    return bool((finite | values.isnan() if nan else finite).all())


def _same(a: Tensor, b: Tensor) -> bool:
    alike = a.dtype == b.dtype and a.shape == b.shape
    return alike and bool(((a == b) | (a.isnan() & b.isnan())).all())
