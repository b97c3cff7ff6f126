"""One batch of items made: inverted at once, each edited, its pictures as bytes."""

import hashlib
import json
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from inspect import signature
from itertools import groupby
from typing import Any

from PIL import Image

from nti.datasets.addresses import read_bytes
from nti.datasets.fields import edit_settings, invert_settings
from nti.datasets.item import Edit, Item
from nti.datasets.pie_bench import decode_mask, evaluator_picture
from nti.editing.editors import EDITORS
from nti.editing.prompt_to_prompt import edit
from nti.errors import BatchError, is_out_of_memory
from nti.files import encode_picture
from nti.image import fit_image, load_mask, match_original, open_image, paste_back, psnr, to_pil
from nti.image.pasting import as_picture
from nti.inversion.inversion import Inversion
from nti.inversion.invert import invert_batch
from nti.inversion.sampling import reconstruct_latents
from nti.inversion.state import StateFile, StateFileError
from nti.model import StableDiffusion

__all__ = ["INVERSION", "Keep", "Outcome", "Work", "make", "read_work"]

INVERSION = "inversion.nti.safetensors"
"""The file of an item's inversion, among its results."""

LISTED = ("mode", "cross_replace", "self_replace", "blend", "subtract", "reweight")
"""Settings of Prompt-to-Prompt that may differ between edits which are made at once."""

Captioner = Callable[[Sequence[Image.Image]], Sequence[str]]
"""Says what pictures show."""


@dataclass(frozen=True)
class Keep:
    """What is kept of an item beside its pictures."""

    inversions: bool = False
    """An item without edits keeps its inversion in any case."""
    dtype: str | None = None
    """What inversions are rounded to: float16, bfloat16, or None."""


@dataclass(frozen=True)
class Work:
    """An item with the bytes of its files, or with what kept them from being read."""

    item: Item
    request: str
    """Of the item as it was asked for, before a captioner gave it a prompt."""
    image: bytes = b""
    mask: bytes | None = None
    error: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of an item."""

    id: str
    record: dict[str, Any]
    """What JSON can hold: `status` is `done` or `failed`."""
    files: dict[str, bytes] = field(default_factory=dict)
    """By their names among the item's results."""
    elsewhere: dict[str, bytes] = field(default_factory=dict)
    """By their names among the run's results."""


def read_work(item: Item) -> Work:
    """Read an item's files; what cannot be read is told where the item is made."""
    read: dict[str, bytes | None] = {"image": b"", "mask": None}
    for name, address in (("image", item.image), ("mask", item.mask)):
        if isinstance(address, str):
            try:
                read[name] = read_bytes(address)
            except (OSError, ValueError) as error:
                return Work(item, item.request, error=f"{name}: {error}")
    return Work(item, item.request, read["image"] or b"", read["mask"])


def make(
    model: StableDiffusion,
    works: Sequence[Work],
    keep: Keep,
    *,
    state: StateFile | None = None,
    captioner: Captioner | None = None,
) -> list[Outcome]:
    """Make a batch of items, whose settings of the inversion are the same.

    An item that fails has its error in its record, and the others are made all the same. Memory
    that runs out is raised, as a smaller batch may fit.
    """
    works, refused = _captioned(works, captioner)
    started = time.monotonic()
    inversions, errors = _inverted(model, works, state)
    seconds = (time.monotonic() - started) / max(1, len(works))
    made = dict(refused)
    for number, work in enumerate(works):
        inversion = inversions[number]
        if inversion is None:
            made[work.item.id] = failed(work.item, errors[number])
            continue
        try:
            with _hearing() as heard:
                outcome = _outcome(model, work, inversion, keep, seconds)
            outcome.record["warnings"] = heard
            made[work.item.id] = outcome
        except Exception as error:  # whatever it is, it is this item's alone
            if is_out_of_memory(error) and len(works) > 1:
                raise
            made[work.item.id] = failed(work.item, error)
    return list(made.values())


def failed(item: Item, error: BaseException | str) -> Outcome:
    """Return the record of an item that could not be made."""
    told = str(error) or type(error).__name__
    told = told if told.startswith(item.place) else f"{item.place}: {told}"
    record = {**_asked(item, item.request), "status": "failed", "error": " ".join(told.split())}
    if isinstance(error, BaseException) and not isinstance(error, ValueError | OSError):
        record["traceback"] = "".join(traceback.format_exception(error))
    return Outcome(item.id, record)


def _captioned(
    works: Sequence[Work], captioner: Captioner | None
) -> tuple[list[Work], dict[str, Outcome]]:
    """Give a caption to each item that has none, and put aside those that cannot be made."""
    ready, refused = [], {}
    for work in works:
        item = work.item
        try:
            if work.error:
                raise ValueError(work.error)
            if item.prompt is None:
                if captioner is None:
                    raise ValueError(
                        "prompt: got none, expected what the image shows; or a captioner"
                    )
                item = replace(item, prompt=captioner([open_image(work.image)])[0])
            ready.append(replace(work, item=item))
        except (ValueError, OSError) as error:
            refused[item.id] = failed(item, error)
    return ready, refused


Inversions = tuple[Sequence[Inversion | None], dict[int, Exception]]


def _inverted(model: StableDiffusion, works: Sequence[Work], state: StateFile | None) -> Inversions:
    """Return the inversion of each item, and the error where there is none."""
    if not works:
        return [], {}
    settings, places = invert_settings(works[0].item.settings)
    images, prompts = [work.image for work in works], [str(work.item.prompt) for work in works]

    def run(kept: StateFile | None) -> Inversions:
        found = invert_batch(model, images, prompts, settings, state=kept, **places)
        return found, {}

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # edits are warned of again, item by item
            try:
                return run(state)
            except StateFileError:  # of an older run of the same items, or damaged
                if state is not None:
                    state.remove()
                return run(None)
    except BatchError as error:
        return [x if isinstance(x, Inversion) else None for x in error.results], error.errors
    except Exception as error:
        if is_out_of_memory(error) and len(works) > 1:
            raise
        if len(works) > 1:  # of images of different sizes, say: each by itself
            singles = [_inverted(model, [work], None) for work in works]
            errors = {i: e[0] for i, (_, e) in enumerate(singles) if e}
            return [found[0] for found, _ in singles], errors
        return [None], {0: error}


def _outcome(
    model: StableDiffusion, work: Work, inversion: Inversion, keep: Keep, seconds: float
) -> Outcome:
    item, started = work.item, time.monotonic()
    assert inversion.placement is not None
    upright, placement = match_original(work.image, inversion.placement)
    source = fit_image(upright, placement)
    again = model.decode_latent(reconstruct_latents(model, inversion)[-1])
    pictures = {"source.png": to_pil(source)[0], "reconstruction.png": to_pil(again)[0]}
    mask = _mask(work)
    if mask is not None:
        fitted = load_mask(mask, placement.size, placement)
        pictures["mask.png"] = as_picture(fitted[0, 0])
    edited = [image for some in _edited(model, work, inversion, mask) for image in some]
    pictures |= {f"edit-{number}.png": image for number, image in enumerate(edited, 1)}
    files = {name: encode_picture(image, ".png") for name, image in pictures.items()}
    if keep.inversions or not item.edits:
        files[INVERSION] = inversion.to_bytes(dtype=_dtype(keep.dtype))
    elsewhere = {}
    if item.written_as is not None and edited:
        whole = paste_back(edited[0], work.image, inversion.placement)
        elsewhere[item.written_as] = evaluator_picture(whole)
    record = {
        **_asked(item, work.request),
        "status": "done",
        "psnr": round(psnr(again, source), 3),
        "iterations": sum(inversion.iterations),
        "seconds": {"inversion": round(seconds, 3), "edits": round(time.monotonic() - started, 3)},
        "image_sha256": hashlib.sha256(work.image).hexdigest(),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        "written_as": sorted(elsewhere),
    }
    return Outcome(item.id, record, files, elsewhere)


def _asked(item: Item, request: str) -> dict[str, Any]:
    """What was asked for, as an item's record repeats it."""
    return {
        "id": item.id, "request": request, "place": item.place, "type": item.kind,
        "image": item.image, "prompt": item.prompt, "settings": dict(item.settings),
        "edits": [{"prompt": e.prompt, "settings": dict(e.settings)} for e in item.edits],
    }  # fmt: skip


def _mask(work: Work) -> Image.Image | None:
    """Return the mask as it was given, white where to edit; None where there is none."""
    if work.mask is not None:
        try:
            return open_image(work.mask).convert("L")
        except ValueError as error:
            raise ValueError(f"mask: {str(error).removeprefix('image: ')}") from error
    if isinstance(work.item.mask, tuple):
        return as_picture(decode_mask(work.item.mask))
    return None


def _edited(
    model: StableDiffusion, work: Work, inversion: Inversion, mask: Image.Image | None
) -> Iterator[list[Image.Image]]:
    """Yield the pictures of edits, together those that can be made at once."""
    for _, some in groupby(work.item.edits, _at_once):
        edits = list(some)
        name, settings = edit_settings(edits[0].settings)
        if "mask" in EDITORS[name].needs and "mask" not in settings:
            if mask is None:
                raise ValueError(f"mask: got none, expected one, as {name} needs it")
            settings["mask"] = mask
        if name == "p2p":
            each = [edit_settings(one.settings)[1] for one in edits]
            for listed in LISTED:
                default = signature(edit).parameters[listed].default
                settings[listed] = [own.get(listed, default) for own in each]
        result = EDITORS[name].function(model, inversion, [one.prompt for one in edits], **settings)
        yield result.images


def _at_once(one: Edit) -> str:
    """Edits of the same key are made at once."""
    listed = LISTED if one.settings.get("editor", "p2p") == "p2p" else ()
    return json.dumps({n: v for n, v in one.settings.items() if n not in listed}, sort_keys=True)


def _dtype(name: str | None) -> Any:
    import torch

    return None if name is None else getattr(torch, name)


@contextmanager
def _hearing() -> Iterator[list[str]]:
    """Give a list of what is warned of inside, filled at the end."""
    heard: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield heard
        heard += dict.fromkeys(" ".join(str(w.message).split()) for w in caught)
