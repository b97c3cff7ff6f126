"""Image files, PIL images, arrays and tensors (B, 3, H, W) in [-1, 1], into each other, at any size
and back to the original's.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

__all__ = [
    "FITS",
    "ImageArray",
    "ImageFile",
    "ImageLike",
    "Placement",
    "fit_image",
    "load_image",
    "match_original",
    "open_image",
    "paste_back",
    "to_pil",
]


@runtime_checkable
class ImageArray(Protocol):
    """What a NumPy array offers, by which it is known without NumPy."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W, 3), (H, W, 4) or (H, W)."""

    @property
    def dtype(self) -> Any:
        """Its `str` is `uint8`, for 0..255, or `float16`, `float32` or `float64`, for [0, 1]."""

    def tobytes(self) -> bytes:
        """Return the values in the order of the shape, whatever the strides."""


ImageFile = str | Path | Image.Image | ImageArray
ImageLike = ImageFile | Tensor
Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels, the last two past the end."""

FITS = ("crop", "pad", "stretch")

CHANNELS = {3: "RGB", 4: "RGBA"}
"""Pillow's mode for the last side of an array."""

FLOATS = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}
"""By an array's name for them."""

TOLERANCE = 1e-4
"""A range may be left by so much, less than half of one of 255 levels: resizing rounds."""


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
    def create(cls, original: tuple[int, int], size: tuple[int, int], fit: str) -> "Placement":
        """Place an image of one (width, height) in another.

        `crop` takes the middle of the size's shape, `pad` fits the whole image inside, `stretch`
        changes its shape. ValueError for another fit or a size without pixels.
        """
        if fit not in FITS:
            raise ValueError(f"fit: got {fit!r}, expected one of {', '.join(FITS)}")
        if min(size) < 1:
            raise ValueError(f"size: got {size[0]}x{size[1]}, expected sides of 1 pixel or more")
        taken, filled = original, size
        if fit == "crop":
            taken = _shaped(size, inside=original)
        elif fit == "pad":
            filled = _shaped(original, inside=size)
        return cls(original, _middle(taken, original), size, _middle(filled, size))


def _shaped(shape: tuple[int, int], *, inside: tuple[int, int]) -> tuple[int, int]:
    """Return the largest (width, height) inside another of a shape's proportions."""
    scale = min(inside[0] / shape[0], inside[1] / shape[1])
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def _middle(part: tuple[int, int], whole: tuple[int, int]) -> Box:
    left, top = (whole[0] - part[0]) // 2, (whole[1] - part[1]) // 2
    return left, top, left + part[0], top + part[1]


def open_image(image: ImageFile) -> Image.Image:
    """Return an image upright (EXIF) and in RGB, on white where it is transparent.

    Args:
        image: a path, a PIL image, or a NumPy array (H, W, 3), (H, W, 4) or (H, W) of uint8 in
            0..255 or of floating point in [0, 1], which is rounded to the nearest of 8 bits.

    Raises:
        ValueError: a file that is missing or no image, or an array of another shape, type or range.

    """
    if isinstance(image, ImageArray):
        image = _from_array(image)
    elif not isinstance(image, Image.Image):
        path = Path(image)
        if not path.is_file():
            raise ValueError(f"{path}: no such file; expected an image")
        try:
            # By its name, Pillow maps a grey TIFF into memory and shears it if it is rotated.
            with path.open("rb") as file, Image.open(file) as opened:
                opened.load()
                image = opened
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path}: not an image that can be read ({error})") from error
    return _to_rgb(ImageOps.exif_transpose(image))


def load_image(image: ImageLike, size: int | tuple[int, int], *, fit: str = "crop") -> Tensor:
    """Return an image as (1, 3, H, W) float32 in [-1, 1].

    Args:
        image: a path, a PIL image or an array, see `open_image`; or a tensor (3, H, W) or
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
    width_height = (size, size) if isinstance(size, int) else size
    return fit_image(upright, Placement.create(upright.size, width_height, fit))


def fit_image(upright: Image.Image, placement: Placement) -> Tensor:
    """Resize the part that is taken; (1, 3, H, W) float32 in [-1, 1].

    Padding continues the image's edges: a mirror image would hold its objects twice, and words
    would attend to both.
    """
    left, top, right, bottom = placement.filled
    inner = (right - left, bottom - top)
    fitted = upright.crop(placement.taken).resize(inner, Image.Resampling.LANCZOS)
    pixels = torch.frombuffer(bytearray(fitted.tobytes()), dtype=torch.uint8)
    tensor = pixels.view(1, inner[1], inner[0], 3).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    width, height = placement.size
    return F.pad(tensor, (left, width - right, top, height - bottom), mode="replicate")


def match_original(
    original: ImageFile, placement: Placement | None
) -> tuple[Image.Image, Placement]:
    """Return an original upright and its placement; ValueError where one is not the other's."""
    if placement is None:
        raise ValueError(
            "placement: got none, as of a tensor or of a file saved before there were any;"
            " invert the image's file again to paste edits back"
        )
    upright = open_image(original)
    if upright.size != placement.original:
        raise ValueError(
            f"original: got {upright.width}x{upright.height}, expected"
            f" {placement.original[0]}x{placement.original[1]}: give the image that was inverted"
        )
    return upright, placement


def paste_back(
    edited: Image.Image, original: ImageFile, placement: Placement | None
) -> Image.Image:
    """Lay an edited image over the part of its original that it was made from.

    Args:
        edited: of the placement's size.
        original: the image that was inverted; only what was cropped away still shows.
        placement: `inversion.placement`.

    Returns:
        RGB at the upright original's size; where the original is transparent, on white, as the
        model saw it.

    Raises:
        ValueError: no placement, or images of other sizes than it states.

    """
    upright, placed = match_original(original, placement)
    if edited.size != placed.size:
        raise ValueError(
            f"edited: got {edited.width}x{edited.height}, expected"
            f" {placed.size[0]}x{placed.size[1]}, as the image was inverted"
        )
    left, top, right, bottom = placed.taken
    part = edited.crop(placed.filled)
    upright.paste(part.resize((right - left, bottom - top), Image.Resampling.LANCZOS), (left, top))
    return upright


def _from_array(array: ImageArray) -> Image.Image:
    """(H, W, 3), (H, W, 4) or (H, W), uint8 or floats in [0, 1] -> RGB, RGBA or L."""
    shape, dtype = tuple(array.shape), str(array.dtype)
    mode = CHANNELS.get(shape[-1]) if len(shape) == 3 else "L" if len(shape) == 2 else None
    if mode is None or min(shape) < 1 or dtype not in ("uint8", *FLOATS):
        raise ValueError(
            f"image: got an array {shape} of {dtype}, expected (H, W, 3), (H, W, 4) or (H, W) of"
            f" uint8 in 0..255 or of native floating point in [0, 1]"
            f"{_advice_on_shape(shape) if mode is None else _advice_on_dtype(array.dtype)}"
        )
    pixels = array.tobytes() if dtype == "uint8" else _nearest_bytes(array.tobytes(), FLOATS[dtype])
    return Image.frombytes(mode, (shape[1], shape[0]), pixels)


def _advice_on_shape(shape: tuple[int, ...]) -> str:
    if len(shape) in (3, 4) and shape[0] == 1:
        return ": give array[0]"
    if len(shape) == 3 and shape[0] in CHANNELS:
        return ": give array.transpose(1, 2, 0)"
    return ": give array[..., 0]" if len(shape) == 3 and shape[2] == 1 else ""


def _advice_on_dtype(dtype: Any) -> str:
    kind = "" if str(dtype) in ("uint8", *FLOATS) else getattr(dtype, "kind", "")
    if kind in ("u", "i"):
        return ": give array / 255, or array / 65535 where 65535 is white"
    return ": give array.astype('float32')" if kind in ("f", "b") else ""


def _nearest_bytes(data: bytes, dtype: torch.dtype) -> bytes:
    """Bring floats in [0, 1] to 0..255, rounded."""
    values = torch.frombuffer(bytearray(data), dtype=dtype)
    low, high = values.min().item(), values.max().item()
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):
        advice = "scale them, or give array.clip(0, 1)"
        if low >= 0 and high <= 255:
            advice = "if 255 is white, give array / 255; if they overshoot, array.clip(0, 1)"
        elif low >= -1 - TOLERANCE and high <= 1 + TOLERANCE:
            advice = (
                "if -1 is black, give (array + 1) / 2, or a tensor (3, H, W), which is taken as is;"
                " if they overshoot, array.clip(0, 1)"
            )
        raise ValueError(_out_of_range(low, high, "[0, 1]", advice))
    pixels = bytearray(len(values))
    torch.frombuffer(pixels, dtype=torch.uint8).copy_((values.float() * 255).round())
    return bytes(pixels)


def _out_of_range(low: float, high: float, expected: str, advice: str) -> str:
    if not (math.isfinite(low) and math.isfinite(high)):
        return f"image: got values that are not finite, expected {expected}: replace them"
    return f"image: got values from {low:g} to {high:g}, expected {expected}: {advice}"


def _to_rgb(image: Image.Image) -> Image.Image:
    """Bring any mode to RGB: 16-bit grey goes to the nearest of 8 bits, transparency on white."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bits(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Bring 16-bit grey, or floats in 0..255, to L; to LA where one grey is transparent."""
    scale = 1.0 if image.mode == "F" else 255.0 / 65535.0
    # Pillow's conversion from F to L cuts, so half a level is added to round.
    grey = image.convert("F").point(lambda v: v * scale + 0.5).convert("L")
    transparent = grey.info.pop("transparency", None)
    if transparent is not None:  # a grey of 16 bits, to which 256 others come near in 8
        opaque = [255 * (value != transparent) for value in range(65536)]
        grey.putalpha(image.convert("I").point(opaque, "L"))
    return grey


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
        raise ValueError(_out_of_range(low, high, "[-1, 1]", advice))
    return image


def to_pil(image: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [-1, 1] -> B PIL images; values beyond are clamped."""
    pixels = ((image.detach().float().cpu().clamp(-1, 1) + 1.0) * 127.5).round().to(torch.uint8)
    height, width = image.shape[-2:]
    return [
        Image.frombytes(
            "RGB", (width, height), bytes(p.permute(1, 2, 0).contiguous().flatten().tolist())
        )
        for p in pixels
    ]
