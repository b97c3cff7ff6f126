"""Images as tensors (B, 3, H, W) in [-1, 1]."""

import torch
from PIL import Image
from torch import Tensor

from nti.arguments import an_instance
from nti.image.opening import ImageFile, open_image
from nti.image.placement import Placement, fit_image
from nti.image.ranges import TOLERANCE, out_of_range

__all__ = ["ImageLike", "load_image", "psnr", "to_pil"]

ImageLike = ImageFile | Tensor


def load_image(image: ImageLike, size: int | tuple[int, int], *, fit: str = "crop") -> Tensor:
    """Return an image as (1, 3, H, W) float32 in [-1, 1].

    Args:
        image: a path, bytes, a PIL image or an array, see `open_image`; or a tensor (3, H, W) or
            (1, 3, H, W) in [-1, 1], taken as is.
        size: side of a square or (width, height) in pixels.
        fit: `crop`, `pad` or `stretch`, see `Placement.create`.

    Raises:
        ValueError: a file that is missing or no image, another fit, or an array or tensor of
        another shape, type or range.

    """
    if isinstance(image, Tensor):
        return _check(image)
    upright = open_image(image)
    return fit_image(upright, Placement.create(upright.size, size, fit))


def _check(image: Tensor) -> Tensor:
    if image.ndim == 3:
        image = image[None]
    fits = image.ndim == 4 and image.shape[:2] == (1, 3) and image.numel() > 0
    if not fits or not image.is_floating_point():
        raise ValueError(
            f"image: got a tensor {tuple(image.shape)} of {image.dtype}, expected (3, H, W)"
            f" or (1, 3, H, W) floating point in [-1, 1]"
        )
    low, high = image.min().item(), image.max().item()
    if not (low >= -1 - TOLERANCE and high <= 1 + TOLERANCE):
        advice = "divide pixels by 127.5, subtract 1"
        raise ValueError(out_of_range(low, high, "[-1, 1]", advice))
    return image


def to_pil(image: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [-1, 1] -> B PIL images; values beyond are clamped.

    ValueError for another shape, or for values that are not finite.
    """
    an_instance("image", image, Tensor)
    if image.ndim != 4 or image.shape[1] != 3 or not image.isfinite().all():
        raise ValueError(
            f"image: got {tuple(image.shape)}, expected (B, 3, H, W) of finite values in [-1, 1]"
        )
    pixels = ((image.detach().float().cpu().clamp(-1, 1) + 1.0) * 127.5).round().to(torch.uint8)
    height, width = image.shape[-2:]
    return [
        Image.frombytes(
            "RGB", (width, height), bytes(p.permute(1, 2, 0).contiguous().flatten().tolist())
        )
        for p in pixels
    ]


def psnr(image: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images (..., H, W) in [-1, 1]; inf for equal ones."""
    error = (image.cpu().double() - reference.cpu().double()).square().mean() / 4.0
    return float(-10.0 * error.log10())
