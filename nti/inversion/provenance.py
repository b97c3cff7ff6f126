"""What an inversion was made from, and how."""

import ctypes
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nti import __version__
from nti.image import ImageLike, open_image
from nti.model import StableDiffusion

__all__ = ["Provenance", "describe_versions", "digest", "image_digest"]


@dataclass(frozen=True)
class Provenance:
    """Where an inversion comes from: values that JSON can hold."""

    image_sha256: str | None = None
    """Of the image file's bytes, or of an image in memory's pixels; None where there was none."""
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """All of them by name; rules are tables of T numbers."""
    versions: Mapping[str, str] = field(default_factory=dict, hash=False)
    """See `describe_versions`."""


def describe_versions(model: StableDiffusion) -> dict[str, str]:
    """Return the versions of nti and torch, and how the model computes, by name."""
    return {
        "nti": __version__,
        "torch": torch.__version__,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "backend": model.unet.backend,
        "execution": model.steps.execution,
    }


def image_digest(image: ImageLike) -> str:
    """SHA-256 of a file's bytes, given as a path or as they are, or of values: float32 of a tensor,
    8 bits in RGB of any other image.
    """
    if isinstance(image, str | Path):
        with Path(image).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if isinstance(image, bytes):
        return hashlib.sha256(image).hexdigest()
    if isinstance(image, Tensor):
        return digest(image.float())
    return hashlib.sha256(open_image(image).tobytes()).hexdigest()


def digest(values: Tensor) -> str:
    """SHA-256 of a tensor's bytes, in the order of its shape."""
    plain = values.detach().cpu().contiguous()
    return hashlib.sha256(ctypes.string_at(plain.data_ptr(), plain.nbytes)).hexdigest()
