"""The images that are inverted: read, brought to a size that the model takes, and known again."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nti.arguments import a_text, a_whole_number, shown
from nti.config import ModelConfig
from nti.image import ImageLike, Placement, fit_image, load_image, open_image
from nti.inversion.provenance import image_digest
from nti.model import StableDiffusion

__all__ = [
    "Size",
    "Source",
    "fitted_image",
    "fitted_size",
    "read_sources",
    "stacked",
    "width_and_height",
]

Size = int | tuple[int, int] | Literal["native"]
"""The side of a square, (width, height), or the image's own size, each side rounded to the model's
granularity."""


@dataclass(frozen=True, eq=False)
class Source:
    """An image that was read."""

    prompt: str
    pixels: Tensor
    """(1, 3, H, W) in [-1, 1]."""
    placement: Placement | None
    sha256: str


def read_sources(
    model: StableDiffusion,
    images: Sequence[ImageLike],
    prompts: Sequence[str],
    size: Size | None,
    fit: str,
) -> tuple[dict[int, Source], dict[int, Exception]]:
    """Read what can be read, by its number, and say what is wrong with the rest."""
    sources: dict[int, Source] = {}
    errors: dict[int, Exception] = {}
    for number, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
        try:
            pixels, placement = fitted_image(model, image, size, fit)
            words = a_text("prompt", prompt)
            sources[number] = Source(words, pixels, placement, image_digest(image))
        except (ValueError, OSError) as error:
            errors[number] = error
    return sources, errors


def stacked(pixels: list[Tensor]) -> Tensor:
    """Return (B, 3, H, W) of images (1, 3, H, W)."""
    sizes = sorted({f"{x.shape[-1]}x{x.shape[-2]}" for x in pixels})
    if len(sizes) > 1:
        raise ValueError(
            f"invert_batch: got images of {', '.join(sizes)} pixels, expected one size:"
            f" give it as `size`, or invert them one by one"
        )
    return torch.cat(pixels)


LARGEST = 2**16
"""Pixels along a side."""


def width_and_height(size: object, also: str = "") -> tuple[int, int]:
    """Return pixels, the side of a square or (width, height), as a pair.

    ValueError for all else; its message says what is allowed `also`.
    """
    sides = size if isinstance(size, tuple | list) else (size, size)
    try:
        width, height = (a_whole_number("size", side, 1, LARGEST) for side in sides)
    except ValueError:
        message = f"size: got {shown(size)}, expected pixels or (width, height){also}"
        raise ValueError(message) from None
    return width, height


def fitted_image(
    model: StableDiffusion, image: ImageLike, size: Size | None, fit: str
) -> tuple[Tensor, Placement | None]:
    """Return the image at a size that the model takes, and where in the original it lies.

    Args:
        model: the model.
        image: see `nti.invert`.
        size: see there.
        fit: see there.

    Returns:
        (1, 3, H, W) in [-1, 1], and None as the placement of a tensor.

    Raises:
        ValueError: an image that cannot be read, or a size that the model does not take.

    """
    config = model.config
    if isinstance(image, Tensor):
        if size is not None:
            raise ValueError(f"size: got {size!r} for a tensor, expected none: it is taken as is")
        return load_image(image, config.image_size), None
    upright = open_image(image)
    placement = Placement.create(upright.size, fitted_size(config, upright.size, size), fit)
    return fit_image(upright, placement), placement


def fitted_size(
    config: ModelConfig, upright: tuple[int, int], size: Size | None
) -> tuple[int, int]:
    """Return the (width, height) that an upright image of a (width, height) comes to.

    ValueError for a size that the model does not take.
    """
    size = config.image_size if size is None else size
    wanted = upright if size == "native" else size
    width, height = width_and_height(wanted, " or 'native'")
    multiple = config.granularity
    nearest = tuple(max(1, round(side / multiple)) * multiple for side in (width, height))
    if size != "native" and (width, height) != nearest:
        raise ValueError(
            f"size: got {width}x{height}, expected multiples of {multiple}, which {config.name}"
            f" needs; the nearest are {nearest[0]}x{nearest[1]}"
        )
    return nearest[0], nearest[1]
