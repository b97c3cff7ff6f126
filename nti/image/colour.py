"""Any of Pillow's modes, in any colour space, to 8 bits of sRGB."""

import io
import warnings
from collections.abc import Callable, Iterator

import torch
from PIL import Image, ImageCms

from nti.image.ranges import TOLERANCE, out_of_range

__all__ = ["to_srgb"]

BAND = 2**20
"""Pixels that are converted at once, so that what lies between source and result stays small."""

DEEP = {"I": torch.int32, "F": torch.float32}
"""Modes whose white is not known by the mode, and how they are in memory."""

GREYS = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F")

BASES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}
"""The mode in which a colour space of profiles is converted."""


def to_srgb(image: Image.Image) -> Image.Image:
    """Bring a loaded image to RGB in sRGB, on white where it is transparent.

    Returns:
        A new image without metadata: `nti.image.open_image` says by which rules.

    Raises:
        ValueError: values beyond the mode's range, or a mode that Pillow cannot convert.

    """
    scale = _scale(image)
    colours = _colours(image)
    rgb = Image.new("RGB", image.size)
    try:
        for top, band in _bands(image):
            eight = band if scale is None else _to_8_bits(band, scale)
            rgb.paste(_flat(eight, colours), (0, top))
    except ValueError as error:
        raise ValueError(
            f"image: got mode {image.mode}, expected one that Pillow converts to RGB ({error})"
        ) from error
    return rgb


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Cut an image into (top row, band)."""
    width, height = image.size
    rows = max(1, BAND // width)
    for top in range(0, height, rows):
        yield top, image.crop((0, top, width, min(top + rows, height)))


def _flat(band: Image.Image, colours: Callable[[Image.Image], Image.Image]) -> Image.Image:
    if band.mode not in ("RGBA", "LA", "PA", "RGBa", "La") and "transparency" not in band.info:
        return colours(band)
    band = band.convert("LA" if band.mode == "La" else "RGBA")
    layer = colours(band)
    layer.putalpha(band.getchannel("A"))
    return Image.alpha_composite(Image.new("RGBA", band.size, "white"), layer).convert("RGB")


def _colours(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Return what brings bands of an image to RGB in sRGB, their transparency left out."""
    profile = image.info.get("icc_profile")
    if not profile:
        return lambda band: band.convert("RGB")
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        base = BASES[given.profile.xcolor_space.strip()]
        grey, cmyk = image.mode in GREYS, image.mode == "CMYK"
        if (base == "CMYK") != cmyk or (base == "L" and not grey):
            raise ValueError(f"a profile of {base} for {image.mode}")
        transform = ImageCms.buildTransform(
            given,
            ImageCms.createProfile("sRGB"),
            base,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    # A Pillow without LittleCMS raises ImportError, a profile of another space KeyError.
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, KeyError, ImportError) as error:
        warnings.warn(
            f"image: its colour profile cannot be used ({error}); it is read as sRGB", stacklevel=4
        )
        return lambda band: band.convert("RGB")
    return lambda band: transform.apply(band.convert(base))


def _scale(image: Image.Image) -> float | None:
    """Return what brings white to 255; None where it is there. ValueError where it is unclear."""
    deep = _deep_mode(image)
    if deep is None:
        return None
    low, high = _extremes(image, deep)
    if deep == "I":
        white, margin, unclear = 65535.0, 0.0, 0 < high <= 255
        expected = "0 to 65535, which is white"
        advice = "if 255 is white, give image.convert('I').convert('L')"
    else:
        white = 1.0 if high <= 1 + TOLERANCE else 255.0
        margin, unclear = TOLERANCE * white, 1 + TOLERANCE < high <= 2
        expected = "0 to 1 or 0 to 255, which is white"
        advice = (
            "to cut them off, give image.convert('L') where 255 is white, or image.point(lambda v:"
            " v * 255).convert('L') where 1 is"
        )
    if unclear or not (low >= -margin and high <= white + margin):
        raise ValueError(out_of_range(low, high, expected, advice))
    return 255 / white


def _deep_mode(image: Image.Image) -> str | None:
    """Return the mode of `DEEP` that holds an image's values; None where 8 bits do."""
    mode = "I" if image.mode.startswith("I;16") else image.mode
    return mode if mode in DEEP else None


def _extremes(image: Image.Image, deep: str) -> tuple[float, float]:
    """Return the least and the largest value, NaN where one is NaN."""
    lows, highs = [], []
    for _, band in _bands(image):
        values = torch.frombuffer(bytearray(band.convert(deep).tobytes()), dtype=DEEP[deep])
        lows.append(values.min().double())
        highs.append(values.max().double())
    return torch.stack(lows).min().item(), torch.stack(highs).max().item()


def _to_8_bits(image: Image.Image, scale: float) -> Image.Image:
    """Bring grey to L, rounded; to LA where one grey is transparent."""
    # Pillow's conversion from F to L cuts, so half a level is added to round.
    grey = image.convert("F").point(lambda v: v * scale + 0.5).convert("L")
    transparent = grey.info.pop("transparency", None)
    if transparent is not None:  # a grey of 16 bits, to which 256 others come near in 8
        opaque = [255 * (value != transparent) for value in range(65536)]
        grey.putalpha(image.convert("I").point(opaque, "L"))
    return grey
