"""Labelled sheets of images, and maps drawn as heat."""

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from nti.image import to_pil

__all__ = ["contact_sheet", "heat_image"]


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
