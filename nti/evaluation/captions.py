"""Captioners: what pictures show, written by CoCa or chosen by CLIP among candidates.

An edit can change what its caption names. So a caption is short and plain, and names the things.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from nti.evaluation.clip import Clip, load_clip
from nti.evaluation.grammar import Choice, Grammar

__all__ = ["Caption", "Captioner", "captioner_of"]


@dataclass(frozen=True)
class Caption:
    """One caption of a picture."""

    text: str
    score: float
    """Cosine of picture and text; of CoCa the mean log-probability of a token."""


class Captioner(Protocol):
    """Says what pictures show."""

    @property
    def digest(self) -> str:
        """Of all that its captions depend on."""

    def __call__(self, pictures: Sequence[Image.Image]) -> list[str]:
        """Return the best caption of each picture."""

    def ranked(self, picture: Image.Image, count: int) -> list[Caption]:
        """Return the best captions of a picture, the best first."""


def captioner_of(
    path: str | Path | None = None, name: str | None = None, candidates: Sequence[str] = ()
) -> Captioner:
    """Return a captioner by open_clip's weights.

    Args:
        path: see `load_clip`; None: the small CLIP of the embedded model's world.
        name: see there.
        candidates: captions that CLIP chooses among. Without any, CoCa writes them, and a CLIP
            whose configuration has a grammar chooses among what that allows.

    Raises:
        ValueError: what cannot be loaded, or a CLIP that has nothing to choose among.

    """
    clip = load_clip(path, name)
    if candidates:
        return Ranker(clip, tuple(candidates))
    if clip.captions:
        return Writer(clip)
    if "grammar" in clip.config:
        return Chooser(clip, Grammar.of(clip.config["grammar"]))
    raise ValueError(
        f"{path}: got a CLIP and nothing to choose among, expected candidates; or weights of CoCa,"
        " which writes captions"
    )


class _Each:
    """The best caption of each picture."""

    _clip: Clip
    _candidates: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Of the weights and the candidates."""
        told = json.dumps([type(self).__name__, self._clip.digest, self._candidates])
        return hashlib.sha256(told.encode()).hexdigest()[:24]

    def __call__(self, pictures: Sequence[Image.Image]) -> list[str]:
        """Return the best caption of each picture."""
        return [self.ranked(picture, 1)[0].text for picture in pictures]

    def ranked(self, picture: Image.Image, count: int) -> list[Caption]:
        """Return the best captions of a picture, the best first."""
        raise NotImplementedError


class Ranker(_Each):
    """Chooses among given captions."""

    def __init__(self, clip: Clip, candidates: tuple[str, ...]) -> None:
        self._clip, self._candidates = clip, candidates
        self._texts = clip.texts(candidates)

    def ranked(self, picture: Image.Image, count: int) -> list[Caption]:
        """Return the best captions of a picture, the best first."""
        scores = (self._texts @ self._clip.images([picture])[0]).tolist()
        found = [Caption(*pair) for pair in zip(self._candidates, scores, strict=True)]
        return sorted(found, key=lambda caption: -caption.score)[:count]


KEPT, PAIRED, ROUNDS = 8, 24, 6
"""How many captions a search goes on with, how many it combines, how often it looks around."""


class Chooser(_Each):
    """Chooses among what a grammar allows, by search: far fewer captions than there are.

    The best captions of one phrase come first. The phrases of the best are combined, and then the
    best of all are changed word by word for as long as that helps.
    """

    def __init__(self, clip: Clip, grammar: Grammar) -> None:
        self._clip, self._grammar = clip, grammar
        singles = [Choice((phrase,), end) for phrase in grammar.phrases() for end in grammar.ends]
        self._texts: dict[Choice, Tensor] = {}
        self._embed(singles)
        self._singles = singles

    def ranked(self, picture: Image.Image, count: int) -> list[Caption]:
        """Return the best captions of a picture, the best first."""
        image = self._clip.images([picture])[0]
        found = self._scored(image, self._singles)
        best = self._best(found, PAIRED)
        combined = [choice.phrases for choice in best]
        ends = list(dict.fromkeys(choice.end for choice in best))[:2]
        for _ in range(self._grammar.most - 1):
            combined = [(*a, *b.phrases) for a in combined for b in best]
            allowed = [phrases for phrases in combined if self._grammar.allows(phrases)]
            found |= self._scored(image, [Choice(p, end) for p in allowed for end in ends])
        for _ in range(ROUNDS):
            best = self._best(found, KEPT)
            around = {near for choice in best for near in self._grammar.neighbours(choice)}
            if not (new := around - found.keys()):
                break
            found |= self._scored(image, sorted(new, key=Choice.caption))
        return [Caption(c.caption(), found[c]) for c in self._best(found, count)]

    def _best(self, found: dict[Choice, float], count: int) -> list[Choice]:
        return sorted(found, key=lambda choice: -found[choice])[:count]

    def _scored(self, image: Tensor, choices: Sequence[Choice]) -> dict[Choice, float]:
        self._embed(choices)
        if not choices:
            return {}
        scores = torch.stack([self._texts[choice] for choice in choices]) @ image
        return dict(zip(choices, scores.tolist(), strict=True))

    def _embed(self, choices: Sequence[Choice]) -> None:
        new = [choice for choice in choices if choice not in self._texts]
        if new:
            texts = self._clip.texts([choice.caption() for choice in new])
            self._texts |= dict(zip(new, texts, strict=True))


START, END, LONGEST, SHORTEST = 49406, 49407, 30, 5
"""CLIP's tokens around a text, and how many tokens a caption has."""


class Writer(_Each):
    """CoCa, which writes a caption token by token (Yu et al. 2022, arXiv 2205.01917).

    Each beam goes on with its likeliest tokens. open_clip's own loop needs classes that newer
    versions of transformers have dropped.
    """

    def __init__(self, clip: Clip, beams: int = 6) -> None:
        self._clip, self._beams = clip, beams
        self._decode = _decoder()

    @torch.no_grad()
    def ranked(self, picture: Image.Image, count: int) -> list[Caption]:
        """Return the best captions of a picture, the best first."""
        seen = self._clip.model(self._clip.pixels([picture]))
        beams = [([START], 0.0)]
        ended: list[tuple[list[int], float]] = []
        for length in range(1, LONGEST):
            grown = self._grown(seen, beams, may_end=length >= SHORTEST)
            beams = []
            for tokens, score in sorted(grown, key=lambda each: -each[1])[: 2 * self._beams]:
                (ended if tokens[-1] == END else beams).append((tokens, score))
            beams = beams[: self._beams]
            if len(ended) >= self._beams or not beams:
                break
        whole = [(tokens, score / (len(tokens) - 1)) for tokens, score in ended or beams]
        ranked = sorted(whole, key=lambda each: -each[1])
        texts = {self._decode(tokens): score for tokens, score in reversed(ranked)}
        return [Caption(text, score) for text, score in list(reversed(texts.items()))[:count]]

    def _grown(
        self, seen: dict[str, Any], beams: Sequence[tuple[list[int], float]], may_end: bool
    ) -> list[tuple[list[int], float]]:
        """Return each beam with each of its likeliest next tokens."""
        texts = torch.tensor([tokens for tokens, _ in beams])
        kept = {"image_latent": seen["image_features"], "image_embs": seen["image_embs"]}
        images = {name: x.expand(len(beams), *x.shape[1:]) for name, x in kept.items()}
        said = self._clip.model(None, texts, output_labels=False, **images)["logits"][:, -1]
        if not may_end:
            said[:, END] = -torch.inf
        scores, tokens = said.log_softmax(dim=-1).topk(2 * self._beams, dim=-1)
        return [
            ([*before, int(token)], score + float(more))
            for (before, score), some, mores in zip(beams, tokens, scores, strict=True)
            for token, more in zip(some, mores, strict=True)
        ]


def _decoder() -> Any:
    import open_clip

    def decode(tokens: Sequence[int]) -> str:
        text: str = open_clip.decode(torch.tensor(tokens))
        return text.replace("<start_of_text>", "").split("<end_of_text>")[0].strip()

    return decode
