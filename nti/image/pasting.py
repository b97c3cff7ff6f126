"""An edited image, laid over the original that it was made from."""

from contextlib import suppress

import torch
from PIL import Image
from torch import Tensor

from nti.arguments import an_instance
from nti.image.mask import MaskLike, load_mask
from nti.image.opening import ImageFile
from nti.image.placement import Placement, match_original

__all__ = ["as_picture", "paste_back"]


def paste_back(
    edited: Image.Image,
    original: ImageFile,
    placement: Placement | None,
    *,
    mask: MaskLike | None = None,
) -> Image.Image:
    """Lay an edited image over the part of its original that it was made from.

    Args:
        edited: of the placement's size.
        original: the image that was inverted; what was cropped away still shows.
        placement: `inversion.placement`.
        mask: white where the edited image is to show; elsewhere the original's own pixels stay. Of
            the original's size or of the edited image's, see `nti.image.load_mask`. None: it shows
            everywhere.

    Returns:
        RGB in sRGB at the upright original's size, without its profile; where the original is
        transparent, on white, as the model saw it.

    Raises:
        ValueError: no placement, or images of other sizes than it states.

    """
    an_instance("edited", edited, Image.Image)
    upright, placed = match_original(original, placement)
    if edited.size != placed.size:
        raise ValueError(
            f"edited: got {edited.width}x{edited.height}, expected"
            f" {placed.size[0]}x{placed.size[1]}, as the image was inverted"
        )
    pasted = upright.copy()
    _lay(edited.convert("RGB"), pasted, placed, Image.Resampling.LANCZOS)
    if mask is None:
        return pasted
    return Image.composite(pasted, upright, _whole(mask, placed))


def as_picture(mask: Tensor) -> Image.Image:
    """Return a mask (H, W) of bool as a picture of mode L, white where it is True."""
    height, width = mask.shape
    values = bytes(mask.to(torch.uint8).mul(255).flatten().tolist())
    return Image.frombytes("L", (width, height), values)


def _lay(
    fitted: Image.Image, onto: Image.Image, placed: Placement, filter: Image.Resampling
) -> None:
    """Lay a picture of the placement's size, less its padding, over what it was taken from."""
    left, top, right, bottom = placed.taken
    part = fitted.crop(placed.filled)
    onto.paste(part.resize((right - left, bottom - top), filter), (left, top))


def _whole(mask: MaskLike, placed: Placement) -> Image.Image:
    """Return a mask at the original's size, black around the part that was taken."""
    with suppress(ValueError):
        return as_picture(load_mask(mask, placed.original, None)[0, 0])
    whole = Image.new("L", placed.original)
    fitted = as_picture(load_mask(mask, placed.size, placed)[0, 0])  # what is wrong is told here
    _lay(fitted, whole, placed, Image.Resampling.NEAREST)
    return whole
