"""Masks of images: read, and brought to where the image lies."""

import torch
from torch import Tensor

from nti.image.array import ImageArray
from nti.image.opening import ImageFile, open_image
from nti.image.placement import Placement, fit_image

__all__ = ["MaskLike", "load_mask"]

MaskLike = ImageFile | Tensor


def load_mask(mask: MaskLike, size: tuple[int, int], placement: Placement | None) -> Tensor:
    """Return a mask at the size of its image: (1, 1, H, W) bool, True where it is white.

    What is at least half white is white, as in the published inpainting pipelines.

    Args:
        mask: a path, a PIL image or an array, see `open_image` (what is transparent is white), of
            the upright original's size, or of the size of the image as the model gets it; or a
            tensor (H, W), (1, H, W) or (1, 1, H, W) of bool or of numbers in [0, 1], or an array of
            bool, of the latter size.
        size: (width, height) of the image as the model gets it.
        placement: where that lies in its original; None for an image that was a tensor.

    Raises:
        ValueError: a mask that cannot be read or is of another size than its image, or a tensor of
        another type or range.

    """
    if isinstance(mask, ImageArray) and str(mask.dtype) == "bool" and mask.tobytes():
        mask = torch.frombuffer(bytearray(mask.tobytes()), dtype=torch.bool).view(mask.shape)
    if isinstance(mask, Tensor):
        return _checked(mask.detach().cpu(), size)
    try:
        picture = open_image(mask)
    except ValueError as error:
        raise ValueError(f"mask: {str(error).removeprefix('image: ')}") from error
    sizes = [size] if placement is None else [placement.original, size]
    if picture.size not in sizes:
        raise ValueError(
            f"mask: got {picture.width}x{picture.height} pixels, expected"
            f" {' or '.join(f'{w}x{h}' for w, h in dict.fromkeys(sizes))}, as its image has: draw"
            " it on the image itself"
        )
    if placement is None or picture.size != placement.original:
        placement = Placement.create(size, size, "stretch")
    return fit_image(picture, placement).mean(dim=1, keepdim=True) >= 0


def _checked(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a tensor as (1, 1, H, W) bool."""
    width, height = size
    shaped = mask.ndim in (2, 3, 4) and mask.shape[-2:] == (height, width)
    plain = mask.layout == torch.strided and not mask.is_complex()
    if not plain or not shaped or mask.numel() != width * height:
        raise ValueError(
            f"mask: got a tensor {tuple(mask.shape)} of {mask.dtype}, expected (H, W), (1, H, W) or"
            f" (1, 1, H, W) of bool or of numbers in [0, 1], as high and wide as its image:"
            f" {height} x {width}"
        )
    values = mask.reshape(1, 1, height, width)
    if mask.dtype == torch.bool:
        return values
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise ValueError(
            f"mask: got values from {values.min().item():g} to {values.max().item():g}, expected"
            " [0, 1]: scale them, or give mask > 0"
        )
    return values >= 0.5
