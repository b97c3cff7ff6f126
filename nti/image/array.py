"""NumPy arrays as PIL images, without NumPy."""

from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image

from nti.image.ranges import TOLERANCE, out_of_range

__all__ = ["ImageArray", "from_array"]


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


CHANNELS = {3: "RGB", 4: "RGBA"}
"""Pillow's mode for the last side of an array."""

FLOATS = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}
"""By an array's name for them."""


def from_array(array: ImageArray) -> Image.Image:
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
        raise ValueError(out_of_range(low, high, "[0, 1]", advice))
    pixels = bytearray(len(values))
    torch.frombuffer(pixels, dtype=torch.uint8).copy_((values.float() * 255).round())
    return bytes(pixels)
