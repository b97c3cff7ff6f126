"""Rendered scenes in memory: seeds to pixels, in parallel, cached on disk as one array."""

import multiprocessing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scene import SIZE, random_scene, render

__all__ = ["HELD_OUT", "load_pixels"]

HELD_OUT = range(1_000_000, 2_000_000)
"""Seeds that no training reads; training takes 0, 1, 2, ..."""


def _render_seed(seed: int) -> NDArray[np.uint8]:
    return render(random_scene(seed))


def load_pixels(path: Path, count: int) -> NDArray[np.uint8]:
    """Return scenes 0..count-1, (count, SIZE, SIZE, 3) uint8, rendered to `path` once."""
    if path.exists():
        pixels = np.load(path, mmap_mode="r")
        if pixels.shape != (count, SIZE, SIZE, 3):
            raise ValueError(
                f"{path}: got {pixels.shape}, expected {(count, SIZE, SIZE, 3)}: delete the file"
            )
        return np.asarray(pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npy")
    pixels = np.lib.format.open_memmap(
        part, mode="w+", dtype=np.uint8, shape=(count, SIZE, SIZE, 3)
    )
    with multiprocessing.get_context("spawn").Pool() as pool:
        for seed, image in enumerate(pool.imap(_render_seed, range(count), chunksize=256)):
            pixels[seed] = image
    pixels.flush()
    part.rename(path)
    return np.asarray(pixels)
