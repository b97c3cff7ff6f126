"""Image files: which are read, how large they may be, and which way up they are."""

import io
import os
from pathlib import Path
from typing import IO

from PIL import ExifTags, Image

from nti.arguments import shown
from nti.image.array import ImageArray, from_array
from nti.image.colour import to_srgb

__all__ = ["FORMATS", "MOST_PIXELS", "ImageFile", "open_image"]

ImageFile = str | Path | bytes | Image.Image | ImageArray

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of what is read, whatever a file is called. None of them runs another program, as
EPS does."""

MOST_PIXELS = 120_000_000
"""Of a file. Pillow takes 4 bytes for each, several times over."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF's orientation, what turns an image upright."""


def open_image(image: ImageFile) -> Image.Image:
    """Return an image upright (EXIF), in RGB and sRGB, on white where it is transparent.

    A colour profile is converted from (relative colorimetric, with black point compensation) and
    dropped, as is all other metadata; one that cannot be used is ignored with a warning. Of an
    animation the first frame is taken. In grey of more than 8 bits white is 65535, of floating
    point 1 where nothing exceeds it, else 255; values that go beyond, or are all too dark to be
    seen, are refused.

    Args:
        image: a path, a file's bytes, a PIL image, or a NumPy array (H, W, 3), (H, W, 4) or (H, W)
            of uint8 in 0..255 or of floating point in [0, 1], which is rounded to the nearest of 8
            bits. A file is one of `FORMATS`, of at most `MOST_PIXELS`.

    Returns:
        A new image without metadata.

    Raises:
        ValueError: a file that is missing, damaged, too large or no image, or an image or array of
            another shape, type or range.

    """
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        try:
            return open_image(_read(path))
        except ValueError as error:
            if str(path) in str(error):
                raise
            raise ValueError(f"{path}: {error}") from error
    if isinstance(image, bytes):
        return open_image(_decoded(io.BytesIO(image), "image"))
    if isinstance(image, ImageArray):
        image = from_array(image)
    elif not isinstance(image, Image.Image):
        raise ValueError(
            f"image: got {shown(image)}, expected a path, a file's bytes, a PIL image or a NumPy"
            " array"
        )
    if min(image.size) < 1:
        raise ValueError(f"image: got {image.width}x{image.height} pixels, expected 1 or more")
    image = _upright(image)  # what a file gave is not kept beside what was turned
    return to_srgb(image)


def _read(path: Path) -> Image.Image:
    if not os.path.isfile(path):  # which no name makes fail
        raise ValueError(f"{path}: no such file; expected an image")
    try:
        # By its name, Pillow maps a grey TIFF into memory and shears it if it is rotated.
        file = path.open("rb")
    except OSError as error:
        raise ValueError(f"{path}: not an image that can be read ({error})") from error
    with file:
        return _decoded(file, str(path))


def _decoded(file: IO[bytes], name: str) -> Image.Image:
    try:
        image = _identified(file)
        if image.width * image.height <= MOST_PIXELS:
            image.load()
            return image
    # Decoders raise whatever damaged data leads them to.
    except Exception as error:
        raise ValueError(f"{name}: not an image that can be read ({error})") from error
    raise ValueError(
        f"{name}: got {image.width}x{image.height} pixels, expected at most {MOST_PIXELS:,}: scale"
        " it down, or open it with Pillow and give the image"
    )


def _identified(file: IO[bytes]) -> Image.Image:
    """Read a header, as `Image.open` does, which would warn of a size before we can look at it."""
    Image.init()
    start = file.read(16)
    for name in FORMATS:
        factory, accepts = Image.OPEN[name]
        if accepts is None or accepts(start) is True:
            file.seek(0)
            return factory(file, "")
    raise ValueError(
        f"expected one of {', '.join(FORMATS)}: convert it, or open it with Pillow and give the"
        " image"
    )


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF says, if that can be read."""
    try:
        image.load()  # some formats have their EXIF behind the pixels
    except Exception as error:  # as in `_read`
        raise ValueError(f"image: not one that can be read ({error})") from error
    try:
        turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # parsed by hand in Pillow, which raises whatever stray bytes lead it to
        return image
    return image if turn is None else image.transpose(turn)
