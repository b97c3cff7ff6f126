"""Where an image lies in its original: cropped, padded or stretched."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from nti.arguments import a_choice, a_whole_number, an_instance, shown
from nti.image.opening import ImageFile, open_image

__all__ = ["FITS", "Placement", "fit_image", "match_original"]

Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels, the last two past the end."""

FITS = ("crop", "pad", "stretch")

MOST = 10**6
"""Pixels of a side."""


@dataclass(frozen=True)
class Placement:
    """Where a fitted image lies in its upright original: `taken` of it fills `filled`."""

    original: tuple[int, int]
    """(width, height) of the original, upright."""
    taken: Box
    """In the original."""
    size: tuple[int, int]
    """(width, height) of the fitted image."""
    filled: Box
    """In the fitted image; around it is padding."""

    @classmethod
    def create(
        cls, original: tuple[int, int], size: int | tuple[int, int], fit: str
    ) -> "Placement":
        """Place an image of one (width, height) in another, or in a square of a side.

        `crop` takes the middle of the size's shape, `pad` fits the whole image inside, `stretch`
        changes its shape. ValueError for another fit or a size without pixels.
        """
        a_choice("fit", fit, FITS)
        original, whole = _sides("original", original), _sides("size", size)
        taken, filled = original, whole
        if fit == "crop":
            taken = _shaped(whole, inside=original)
        elif fit == "pad":
            filled = _shaped(original, inside=whole)
        return cls(original, _middle(taken, original), whole, _middle(filled, whole))


def _sides(name: str, value: object) -> tuple[int, int]:
    """Return (width, height), each of 1 pixel or more, of a pair or the side of a square."""
    pair = value if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"{name}: got {shown(value)}, expected pixels or (width, height)")
    width, height = (a_whole_number(name, side, 1, MOST, ", in pixels") for side in pair)
    return width, height


def _shaped(shape: tuple[int, int], *, inside: tuple[int, int]) -> tuple[int, int]:
    """Return the largest (width, height) inside another of a shape's proportions."""
    scale = min(inside[0] / shape[0], inside[1] / shape[1])
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def _middle(part: tuple[int, int], whole: tuple[int, int]) -> Box:
    left, top = (whole[0] - part[0]) // 2, (whole[1] - part[1]) // 2
    return left, top, left + part[0], top + part[1]


def fit_image(upright: Image.Image, placement: Placement) -> Tensor:
    """Resize the part that is taken; (1, 3, H, W) float32 in [-1, 1].

    Padding continues the image's edges: a mirror image would hold its objects twice, and words
    would attend to both.
    """
    left, top, right, bottom = placement.filled
    inner = (right - left, bottom - top)
    taken = _cropped(upright, placement.taken)
    fitted = taken.resize(inner, Image.Resampling.LANCZOS)
    pixels = torch.frombuffer(bytearray(fitted.tobytes()), dtype=torch.uint8)
    tensor = pixels.view(1, inner[1], inner[0], 3).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    width, height = placement.size
    return F.pad(tensor, (left, width - right, top, height - bottom), mode="replicate")


def _cropped(image: Image.Image, box: Box) -> Image.Image:
    """Crop as `Image.crop` does, which would warn of a large part, and copy the whole."""
    if box == (0, 0, *image.size):
        return image
    size = (box[2] - box[0], box[3] - box[1])
    return image.resize(size, Image.Resampling.NEAREST, box=box)


def match_original(
    original: ImageFile, placement: Placement | None
) -> tuple[Image.Image, Placement]:
    """Return an original upright and its placement; ValueError where one is not the other's."""
    if placement is None:
        raise ValueError(
            "placement: got none, as of a tensor or of a file saved before there were any;"
            " invert the image's file again to paste edits back"
        )
    an_instance("placement", placement, Placement)
    upright = open_image(original)
    if upright.size != placement.original:
        raise ValueError(
            f"original: got {upright.width}x{upright.height}, expected"
            f" {placement.original[0]}x{placement.original[1]}: give the image that was inverted"
        )
    return upright, placement
