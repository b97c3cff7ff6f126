"""PIE-Bench: its folder read, its evaluator's layout written (Ju et al. 2023, arXiv 2310.01506).

Of 512 x 512 pictures with source and edited prompts, a mask of what is to change, and ten kinds of
edits.
"""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from nti.datasets.item import Edit, Item, Manifest, ManifestError, Problem, check_id

__all__ = [
    "KINDS",
    "MAPPING",
    "PICTURES",
    "SIZE",
    "decode_mask",
    "encode_mask",
    "evaluator_picture",
    "plain_prompt",
    "read_pie_bench",
]

SIZE = 512
"""Pixels along a side of its pictures and masks."""

MAPPING, PICTURES = "mapping_file.json", "annotation_images"
"""The file that describes it, and the folder of its pictures: of sources, and of results."""

KINDS = {
    "0": "random", "1": "change object", "2": "add object", "3": "delete object",
    "4": "change content", "5": "change pose", "6": "change color", "7": "change material",
    "8": "change background", "9": "change style",
}  # fmt: skip
"""The kinds of edits by `editing_type_id`."""

TEXTS = ("image_path", "original_prompt", "editing_prompt", "editing_type_id", "blended_word")
"""The fields of an image that are strings."""

SUGGESTED: dict[str, Any] = {"mode": "refine", "cross_replace": 0.4, "self_replace": 0.6}
WEIGHT = 2.0
"""What its authors' driver gives Prompt-to-Prompt: windows, and the factor on the edited prompt's
blended word."""


def read_pie_bench(folder: str | Path) -> Manifest:
    """Read the folder as its authors distribute it.

    Prompts lose the brackets around their changed words. `blended_word` becomes the blend and
    weighs the edited word, as in the authors' driver, where the editor is Prompt-to-Prompt.

    Raises ManifestError for a `mapping_file.json` that is none.
    """
    path = Path(folder) / MAPPING
    try:
        entries = json.loads(path.read_text("utf-8-sig"), object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{path}: got no JSON that can be read ({error})") from error
    if not isinstance(entries, _Pairs):
        raise ManifestError(f"{path}: expected a JSON object of images by their number")
    items, problems, names = [], [], set()
    for name, entry in entries:
        place = f"{path}: {name}"
        try:
            if name in names:
                raise _FieldError("id", f"got {name!r} twice, expected it once")
            names.add(name)
            items.append(_item(Path(folder), name, entry, place))
        except _FieldError as error:
            problems.append(Problem(place, error.field, str(error), ""))
    return Manifest(str(folder), tuple(items), tuple(problems))


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as its names and values, as a name may stand there twice."""


class _FieldError(ValueError):
    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def _item(folder: Path, name: str, entry: Any, place: str) -> Item:
    if not isinstance(entry, _Pairs):
        raise _FieldError("entry", "expected a JSON object")
    try:
        check_id(name)
    except ValueError as error:
        raise _FieldError("id", str(error)) from error
    fields = dict(entry)
    said = {field: _string(fields, field) for field in TEXTS}
    relative = PurePosixPath(said["image_path"])
    if not said["image_path"] or relative.is_absolute() or ".." in relative.parts:
        raise _FieldError(
            "image_path", f"got {said['image_path']!r}, expected a path inside {PICTURES}"
        )
    words = said["blended_word"].split()
    if len(words) not in (0, 2):
        raise _FieldError(
            "blended_word", f"got {said['blended_word']!r}, expected none or two words"
        )
    suggested = dict(SUGGESTED)
    if words:
        suggested |= {"blend": words, "reweight": {words[1]: WEIGHT}}
    return Item(
        name, str(folder / PICTURES / relative), str(relative),
        plain_prompt(said["original_prompt"]),
        (Edit(plain_prompt(said["editing_prompt"]), defaults=suggested),), {}, place,
        said["editing_type_id"], _runs(fields.get("mask")), written_as=f"{PICTURES}/{relative}",
    )  # fmt: skip


def _string(entry: Mapping[str, Any], field: str) -> str:
    value = entry.get(field)
    if not isinstance(value, str):
        raise _FieldError(field, f"got {value!r}, expected a string")
    return value


def _runs(value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    whole = isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)
    if not whole or len(value) % 2:
        raise _FieldError("mask", "expected pairs of whole numbers: where a run starts, its length")
    return tuple(value)


def plain_prompt(prompt: str) -> str:
    """Return a prompt without the brackets that PIE-Bench sets around changed words."""
    return prompt.replace("[", "").replace("]", "")


def decode_mask(runs: Sequence[int], size: int = SIZE) -> Tensor:
    """Return (size, size) bool: True where to edit, and on the border of one pixel.

    Args:
        runs: start, length, start, length, ... over the rows one after the other. A run that goes
            on beyond the last pixel is cut, as the authors' evaluator does.
        size: pixels along a side.

    """
    mask = torch.zeros(size * size, dtype=torch.bool)
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        mask[start : start + length] = True
    mask = mask.view(size, size)
    mask[[0, -1]] = True
    mask[:, [0, -1]] = True
    return mask


def encode_mask(mask: Tensor) -> list[int]:
    """Return the runs of a mask (H, W) of bool, which `decode_mask` reads."""
    flat = torch.cat([torch.zeros(1, dtype=torch.int8), mask.flatten().to(torch.int8)])
    edges = torch.diff(flat, append=torch.zeros(1, dtype=torch.int8))
    starts, ends = (edges == 1).nonzero()[:, 0], (edges == -1).nonzero()[:, 0]
    return [int(n) for pair in zip(starts, ends - starts, strict=True) for n in pair]


def evaluator_picture(image: Image.Image) -> bytes:
    """Return a picture as its evaluator opens it: 512 x 512, as JPEG with the least loss."""
    square = image.convert("RGB")
    if square.size != (SIZE, SIZE):
        square = square.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    square.save(buffer, "JPEG", quality=100, subsampling=0)
    return buffer.getvalue()
