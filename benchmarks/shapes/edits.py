"""The edits that the embedded model is judged by: one of each kind for every held-out scene."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from measure import Pixels, read_background, read_colour, read_pattern, read_shape
from scene import BACKGROUNDS, COLOURS, PATTERNS, SHAPES, Scene, object_mask

__all__ = ["KINDS", "EditCase", "cases", "true_mask"]

KINDS = ("colour", "shape", "pattern", "background")

WINDOWS: dict[str, dict[str, float]] = {
    "colour": {"cross_replace": 0.6, "self_replace": 0.3},
    "shape": {"cross_replace": 0.2, "self_replace": 0.1},
    "pattern": {"cross_replace": 0.8, "self_replace": 0.5},
    "background": {"cross_replace": 0.0, "self_replace": 0.0},
}
"""Chosen on other scenes than those that are scored. Patterns take the published defaults, colours
shorter windows; a new shape needs its own layout early. z_T already tells this small model the
background, so a new one needs every step: there Prompt-to-Prompt injects nothing, and what is kept
of the objects is what z_T and the null embeddings keep."""


@dataclass(frozen=True)
class EditCase:
    """An edit, its settings, the scene that it should lead to, and how to tell."""

    kind: str
    edited: Scene
    settings: dict[str, Any]
    expected: str
    read: Callable[[Pixels], str]

    @property
    def prompt(self) -> str:
        """The edited prompt."""
        return self.edited.caption()


def cases(scene: Scene) -> Iterator[EditCase]:
    """Yield one edit of each kind, drawn from the scene's seed: of one object, or the background.

    An object's edit blends where its shape's word attends.
    """
    rng = np.random.default_rng([scene.seed, 30])
    index = int(rng.integers(len(scene.objects)))
    others = {name: {getattr(o, name) for o in scene.objects} for name in ("shape", "colour")}
    old = scene.objects[index].pattern
    patterns = [p for p in PATTERNS if p not in ("plain", old)]
    choices = {
        "colour": _draw(rng, set(COLOURS) - others["colour"]),
        "shape": _draw(rng, set(SHAPES) - others["shape"]),
        "pattern": str(rng.choice(patterns)),
    }
    readers = {"colour": read_colour, "shape": read_shape, "pattern": read_pattern}
    for kind, word in choices.items():
        edited = scene.with_object(index, **{kind: word})
        settings: dict[str, Any] = dict(WINDOWS[kind])
        settings["blend"] = (scene.objects[index].shape, edited.objects[index].shape)
        read = partial(readers[kind], scene=edited, index=index)
        yield EditCase(kind, edited, settings, word, read)
    background = _draw(rng, set(BACKGROUNDS) - {scene.background})
    edited = scene.with_background(background)
    read = partial(read_background, scene=edited)
    yield EditCase("background", edited, dict(WINDOWS["background"]), background, read)


def true_mask(case: EditCase, scene: Scene) -> Image.Image:
    """White where the edit is to be: the object's place before and after, or all but objects."""
    count = len(scene.objects)
    if case.kind == "background":
        covered = np.max([object_mask(scene, i) for i in range(count)], axis=0)
        return Image.fromarray(((covered < 0.5) * 255).astype(np.uint8))
    changed = [i for i in range(count) if scene.objects[i] != case.edited.objects[i]]
    places = [object_mask(each, i) for each in (scene, case.edited) for i in changed]
    return Image.fromarray(((np.max(places, axis=0) > 0) * 255).astype(np.uint8))


def _draw(rng: np.random.Generator, words: set[str]) -> str:
    return str(rng.choice(sorted(words)))
