"""What training says of a scene: captions with attributes left out, sometimes wrong, sometimes
empty.

With captions that always say everything, the conditional prediction would be nearly certain and
guidance would have nothing to do. A word that is left out leaves its attribute open, as captions of
photographs do.
"""

from dataclasses import replace

import numpy as np

from scene import BACKGROUNDS, COLOURS, PATTERNS, SHAPES, Object, Scene, article, place

__all__ = ["VOCABULARY", "training_caption"]

EMPTY = 0.10
LEFT_OUT = 0.12
WRONG = 0.03

VOCABULARY = tuple(
    sorted(
        {"a", "an", "and", "at", "in", "on", "the", *SHAPES, *COLOURS, *PATTERNS, *BACKGROUNDS}
        - {"plain"}
    )
)
"""Every word that a caption of this world can hold."""


def training_caption(scene: Scene, rng: np.random.Generator) -> str:
    """Return one of the captions that training gives the scene."""
    if rng.random() < EMPTY:
        return ""
    phrases = [_phrase(thing, rng) for thing in scene.objects]
    text = " and ".join(f"{article(p)} {p}" for p in phrases)
    if rng.random() < LEFT_OUT:
        return text
    background = str(rng.choice(list(BACKGROUNDS))) if rng.random() < WRONG else scene.background
    return f"{text} {place(background)}"


def _phrase(thing: Object, rng: np.random.Generator) -> str:
    """The noun phrase, with words left out or exchanged for wrong ones."""
    if rng.random() < WRONG:
        thing = replace(thing, colour=str(rng.choice(list(COLOURS))))
    if rng.random() < WRONG:
        thing = replace(thing, shape=str(rng.choice(SHAPES)))
    words = [thing.shape]
    if rng.random() >= LEFT_OUT:
        words.insert(0, thing.colour)
    if thing.pattern != "plain" and rng.random() >= LEFT_OUT:
        words.insert(0, thing.pattern)
    return " ".join(words)
