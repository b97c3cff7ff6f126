"""How many items are made at once: measured, and less where memory runs out all the same."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image

from nti.errors import is_out_of_memory
from nti.inversion.invert import invert_batch
from nti.inversion.settings import InversionSettings
from nti.inversion.source import Size
from nti.model import StableDiffusion

__all__ = ["in_parts", "measured_batch"]

Made = TypeVar("Made")
One = TypeVar("One")

MOST = {"cuda": 16, "cpu": 4}
"""Images at once, whatever memory allows: larger batches have not been measured to gain."""

SHARE = 0.8
"""Of the free memory that a batch may take, as edits and other programs need some, too."""

PROBED = (1, 3)
"""Sizes of the two batches that are measured."""


MEMORY = Path("/proc/meminfo")


def measured_batch(
    model: StableDiffusion,
    settings: InversionSettings,
    size: Size | None = None,
    *,
    sharing: int = 1,
) -> int:
    """Return how many images can be inverted at once, where so many processes share the memory.

    Two small batches go through one step each; what they differ by is what an image takes. Where
    not even one image fits, or a system does not tell of a CPU's memory, 1 is returned.
    """
    if model.device.type == "cpu" and not MEMORY.exists():
        return 1
    probe = _probe(settings)
    side = model.config.image_size if size is None or size == "native" else size
    image = Image.new("RGB", (side, side) if isinstance(side, int) else side, "grey")
    at = None if size == "native" else size
    taken = []
    for count in PROBED:
        try:
            with _peak(model.device) as peak:
                invert_batch(model, [image] * count, [""] * count, probe, size=at)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            _free()
            return 1
        taken.append(peak())
    each = max(1, (taken[1] - taken[0]) // (PROBED[1] - PROBED[0]))
    fitting = 1 + (SHARE * free_memory(model.device) / sharing - taken[0]) // each
    return int(min(MOST[model.device.type], max(1, fitting)))


def _probe(settings: InversionSettings) -> InversionSettings:
    """The same method in one step: what a batch takes does not depend on their number."""
    if "inner_steps" in settings.row.settings:
        return replace(settings, steps=1, inner_steps=1)
    return replace(settings, steps=1)


def in_parts(function: Callable[[Sequence[One]], list[Made]], batch: Sequence[One]) -> list[Made]:
    """Return what a function makes of a batch, in halves where memory runs out.

    Of a single one the error is raised.
    """
    try:
        return function(batch)
    except Exception as error:
        if len(batch) == 1 or not is_out_of_memory(error):
            raise
    _free()  # outside of `except`, which holds the frames that hold the tensors
    half = len(batch) // 2
    return in_parts(function, batch[:half]) + in_parts(function, batch[half:])


def free_memory(device: torch.device) -> int:
    """Bytes that nobody uses."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    lines = MEMORY.read_text().splitlines()
    table = dict(line.split(":", 1) for line in lines)
    return int(table["MemAvailable"].split()[0]) * 1024


def _free() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


EVERY = 0.005
"""Seconds between two looks at a process's memory."""


@contextmanager
def _peak(device: torch.device) -> Iterator[Callable[[], int]]:
    """Measure the most bytes that are taken inside, beyond those before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device) - before
        return
    most, before, over = [_resident()], _resident(), threading.Event()

    def look() -> None:
        while not over.is_set():
            most[0] = max(most[0], _resident())
            time.sleep(EVERY)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield lambda: most[0] - before
    finally:
        over.set()
        watcher.join()


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096
