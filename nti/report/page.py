"""A report as one HTML file that needs nothing beside it."""

import base64
import html
import json
import math
import re
from importlib import resources
from io import BytesIO
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from nti.editing.plan import EditPlan
from nti.errors import Callback
from nti.inversion.inversion import Inversion
from nti.model import StableDiffusion
from nti.report.collect import collect

__all__ = ["MOST_BYTES", "make_report"]

MOST_BYTES = 5_000_000

MARK = re.compile(r"\{\{(TITLE|STYLE|PROGRAM|DATA)\}\}")

LOSSLESS = 256
"""The side up to which a picture is kept as PNG."""


def make_report(
    model: StableDiffusion,
    inversion: Inversion,
    plan: EditPlan | None = None,
    *,
    photograph: Tensor | None = None,
    callback: Callback | None = None,
) -> str:
    """Return a page that shows an inversion and its edits.

    How it comes back, how far sampling strays from the pivot, each iteration's loss, how far each
    embedding moved; for each edit its alignment, its words' attention over time beside the
    source's, its blend's mask over time, and before and after.

    Args:
        model: the model that the inversion was made with.
        inversion: of an image.
        plan: of edits, or None.
        photograph: what was inverted, (1, 3, H, W) in [-1, 1], or None.
        callback: called with (parts done, parts in all); see `nti.errors.Callback`.

    Returns:
        HTML of at most 5 MB: styles, program, pictures and data are in it.

    Raises:
        ValueError: another model's inversion, a plan that was not made for it, or so many edits
        that the page would be larger.
        NotFiniteError: values that overflow.
        Stopped: by the callback.

    """
    found = collect(model, inversion, plan, photograph=photograph, callback=callback)
    data = {**vars(found), "edits": [vars(each) for each in found.edits]}
    page = _filled(found.prompt, data)
    if len(page.encode()) > MOST_BYTES:
        raise ValueError(
            f"report: got {len(found.edits)} edits, whose page has"
            f" {len(page.encode()) / 1e6:.1f} MB, expected at most {MOST_BYTES / 1e6:.0f}: give"
            " fewer edits to one report"
        )
    return page


def _filled(title: str, data: dict[str, Any]) -> str:
    """Put data and program into the page."""
    assets = resources.files("nti.report") / "assets"
    text = {each.name: each.read_text("utf-8") for each in assets.iterdir() if each.is_file()}
    # One program: a page without files beside it cannot import.
    drawing = text["draw.js"].replace("export function", "function")
    # "<" would end the element where a prompt holds a tag.
    packed = json.dumps(_plain(data), allow_nan=False, separators=(",", ":"))
    parts = {
        "TITLE": html.escape(title),
        "STYLE": text["style.css"],
        "PROGRAM": drawing + text["report.js"],
        "DATA": packed.replace("<", "\\u003c"),
    }
    # In one pass, as a prompt may hold a mark.
    return MARK.sub(lambda mark: parts[mark[1]], text["report.html"])


def _plain(value: Any) -> Any:
    """Return what JSON has for a value: pictures as URLs, bytes in base64, null for no number."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Image.Image):
        return _data_url(value)
    if isinstance(value, Tensor):
        data = bytes(value.to(torch.uint8).flatten().tolist())
        return {"shape": list(value.shape), "data": base64.b64encode(data).decode()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _data_url(image: Image.Image) -> str:
    buffer = BytesIO()
    kind = "png" if max(image.size) <= LOSSLESS else "jpeg"
    image.save(buffer, kind, quality=90)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
