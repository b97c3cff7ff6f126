"""Image files, PIL images and tensors (B, 3, H, W) in [-1, 1], into each other; labelled sheets of
images.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from torch import Tensor

__all__ = ["contact_sheet", "heat_image", "load_image", "to_pil"]

ImageLike = str | Path | Image.Image | Tensor


def load_image(image: ImageLike, size: int) -> Tensor:
    """Return an image as (1, 3, H, W) float32 in [-1, 1].

    Args:
        image: a path or a PIL image, which is turned upright (EXIF), laid on white where it is
            transparent, cropped to its middle square and resized to `size`; or a tensor (3, H, W)
            or (1, 3, H, W) in [-1, 1], taken as is.
        size: side in pixels.

    Raises:
        ValueError: a file that is missing or no image, or a tensor of another shape, type or range.

    """
    if isinstance(image, Tensor):
        return _check(image)
    if not isinstance(image, Image.Image):
        path = Path(image)
        if not path.is_file():
            raise ValueError(f"{path}: no such file; expected an image")
        try:
            with Image.open(path) as opened:
                opened.load()
                image = opened
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path}: not an image that can be read ({error})") from error
    upright = ImageOps.exif_transpose(image)
    fitted = ImageOps.fit(_to_rgb(upright), (size, size), Image.Resampling.LANCZOS)
    pixels = torch.frombuffer(bytearray(fitted.tobytes()), dtype=torch.uint8)
    return pixels.view(1, size, size, 3).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def _to_rgb(image: Image.Image) -> Image.Image:
    """Bring any mode to RGB: 16-bit grey is scaled, transparency laid on white."""
    if image.mode.startswith("I") or image.mode == "F":
        depth = 255.0 if image.mode == "F" else 65535.0
        image = image.convert("F").point(lambda v: v * (255.0 / depth)).convert("L")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _check(image: Tensor) -> Tensor:
    if image.ndim == 3:
        image = image[None]
    if image.ndim != 4 or image.shape[:2] != (1, 3) or not image.is_floating_point():
        raise ValueError(
            f"image: got a tensor {tuple(image.shape)} of {image.dtype}, expected (3, H, W)"
            f" or (1, 3, H, W) floating point in [-1, 1]"
        )
    low, high = image.min().item(), image.max().item()
    if not (low >= -1.0001 and high <= 1.0001):
        raise ValueError(
            f"image: got values from {low:g} to {high:g}, expected [-1, 1]:"
            f" divide pixels by 127.5, subtract 1"
        )
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


def heat_image(values: Tensor, size: int) -> Image.Image:
    """Draw (h, w) of values >= 0 from black over red and yellow to white at the maximum."""
    scaled = values.detach().float().cpu() / max(float(values.max()), 1e-12)
    rgb = torch.stack([(3 * scaled - shift).clamp(0, 1) for shift in range(3)])
    return to_pil(rgb[None] * 2 - 1)[0].resize((size, size), Image.Resampling.NEAREST)


def contact_sheet(
    rows: Sequence[Sequence[tuple[Image.Image, str]]], *, cell: int = 192, title: str = ""
) -> Image.Image:
    """Lay labelled images out in rows; long labels wrap to the cell's width.

    Args:
        rows: of (image, label).
        cell: side of an image on the sheet in pixels.
        title: stands above.

    """
    font = ImageFont.load_default(size=13)
    gap, line = 10, 17
    wrapped = [[_wrap(label, font, cell) for _, label in row] for row in rows]
    text_heights = [line * max((len(lines) for lines in row), default=1) + 6 for row in wrapped]
    top = gap + (2 * line if title else 0)
    width = gap + max(len(row) for row in rows) * (cell + gap)
    sheet = Image.new("RGB", (width, top + sum(cell + h + gap for h in text_heights)), "white")
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((gap, gap), title, fill="black", font=ImageFont.load_default(size=16))
    y = top
    for row, labels, text_height in zip(rows, wrapped, text_heights, strict=True):
        for column, ((image, _), lines) in enumerate(zip(row, labels, strict=True)):
            x = gap + column * (cell + gap)
            scaled = image.convert("RGB").resize((cell, cell), Image.Resampling.BICUBIC)
            sheet.paste(scaled, (x, y))
            draw.multiline_text((x, y + cell + 3), "\n".join(lines), fill="black", font=font)
        y += cell + text_height + gap
    return sheet


def _wrap(label: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Break a label into lines of at most `width` pixels, and at its own line breaks."""
    lines: list[str] = []
    for paragraph in label.split("\n"):
        line = ""
        for word in paragraph.split(" "):
            longer = f"{line} {word}" if line else word
            if line and font.getlength(longer) > width:
                lines.append(line)
                line = word
            else:
                line = longer
        lines.append(line)
    return lines
