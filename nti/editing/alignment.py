"""Words of two prompts -> token positions -> the matrix M and keep vector k of a P2P edit.

Prompt-to-Prompt (Hertz et al. 2022, arXiv 2208.01626, section 3.2) gives the edited prompt's tokens
the source's attention: column j of M says whose token j receives, k_j = 1 leaves it its own.

The target's end token receives the source's. CLIP's pads carry their position, so a pad of the
target receives the source's pad at the same position. Where the source has a word or its end token
there, the pad keeps its own attention.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import regex  # type: ignore[import-untyped]  # it ships no types
import torch
from torch import Tensor

from nti.arguments import a_choice, a_text, an_instance
from nti.networks.tokenizer import TokenizedPrompt, clean

__all__ = [
    "MODES",
    "Alignment",
    "Mode",
    "Word",
    "align",
    "align_refine",
    "align_replace",
    "choose_mode",
    "has_word",
    "identity",
    "moved_words",
    "token_positions",
    "words_of",
]

logger = logging.getLogger(__name__)

Mode = Literal["replace", "refine", "reweight"]

MODES = ("auto", "replace", "refine", "reweight")
"""What a user may ask for; `auto` is `choose_mode`."""

_RUN = r"[\p{L}\p{N}][\p{L}\p{N}\p{M}]*"
_WORD = regex.compile(rf"{_RUN}(?:['-]{_RUN})*")


@dataclass(frozen=True)
class Word:
    """A run of letters and digits, with the apostrophes and hyphens between them."""

    text: str
    start: int
    end: int
    tokens: tuple[int, ...]
    """Positions counted with BOS = 0; consecutive."""


@dataclass(frozen=True, eq=False)
class Alignment:
    """How the edited prompt attends, from the source's P_s and its own P_e: P_s M + P_e diag(k)."""

    mapping: Tensor
    """M, (L, L) float64: rows are the source's tokens, columns the target's; 0 where k is 1."""
    own: Tensor
    """k, (L,) float64: 1 where the target token keeps its own attention, else 0."""
    mode: Mode


def words_of(prompt: TokenizedPrompt) -> list[Word]:
    """Return the prompt's words in order; punctuation and emoji are not words."""
    return [
        Word(found.group(), found.start(), found.end(), _tokens_in(prompt, *found.span()))
        for found in _WORD.finditer(prompt.text)
    ]


def has_word(prompt: TokenizedPrompt, word: str) -> bool:
    """Whether `token_positions` would find the word or phrase."""
    return any(True for _ in _occurrences(prompt, word))


def token_positions(prompt: TokenizedPrompt, word: str) -> tuple[int, ...]:
    """Return the positions (BOS = 0) of every occurrence of a word or phrase, in order.

    The word is cleaned as the prompt was, and counts only where its ends split no word of the
    prompt ("cat" is not in "catalog"). ValueError if it is not there.
    """
    spans = list(_occurrences(prompt, word))
    if not spans:
        listed = ", ".join(repr(known.text) for known in words_of(prompt)) or "none"
        cut = f" (cut for length: {prompt.cut!r})" if prompt.cut else ""
        raise ValueError(f"{word!r} is not in the prompt {prompt.text!r}; its words: {listed}{cut}")
    return tuple(sorted({i for start, end in spans for i in _tokens_in(prompt, start, end)}))


def choose_mode(source: TokenizedPrompt, target: TokenizedPrompt) -> Literal["replace", "refine"]:
    """Return "replace" for as many words as before, none of them moved, else "refine".

    Replacement gives the i-th word the i-th word's attention. A word that moved would receive that
    of the word in whose place it now is.
    """
    same = len(words_of(source)) == len(words_of(target))
    return "replace" if same and not moved_words(source, target) else "refine"


def moved_words(source: TokenizedPrompt, target: TokenizedPrompt) -> list[str]:
    """Return the words of both prompts that have no place in common, counted in words."""
    ours, theirs = ([word.text for word in words_of(prompt)] for prompt in (source, target))
    kept = {old for old, new in zip(ours, theirs, strict=False) if old == new}
    return [word for word in dict.fromkeys(theirs) if word in ours and word not in kept]


def identity(length: int = 77) -> Alignment:
    """Give every token the source's attention at its own position: for reweighting alone."""
    own = torch.zeros(length, dtype=torch.float64)
    return Alignment(torch.eye(length, dtype=torch.float64), own, "reweight")


def align(mode: str, source: TokenizedPrompt, target: TokenizedPrompt) -> Alignment:
    """Align two prompts in one of `MODES`.

    ValueError for another mode, or for prompts that it does not fit.
    """
    mode = a_choice("mode", mode, MODES)
    for name, prompt in (("source", source), ("target", target)):
        an_instance(name, prompt, TokenizedPrompt)
    if mode == "auto":
        mode = choose_mode(source, target)
        logger.info("mode: %s for %r", mode, target.text)
    elif mode == "replace" and (moved := moved_words(source, target)):
        warnings.warn(
            f"mode: 'replace' goes by places, and {', '.join(map(repr, moved))} moved in"
            f" {target.text!r}: each receives the attention of the word in whose place it now is;"
            " use refine to keep its own word's",
            stacklevel=4,
        )
    if mode == "reweight":
        if source.ids != target.ids:
            raise ValueError(
                f"mode: got 'reweight' for {source.text!r} and {target.text!r}, expected the same"
                f" prompt twice; use replace or refine, which take reweight too"
            )
        return identity(len(source.ids))
    return align_replace(source, target) if mode == "replace" else align_refine(source, target)


def align_replace(source: TokenizedPrompt, target: TokenizedPrompt) -> Alignment:
    """Map the i-th source word to the i-th target word, punctuation in order, pads by position.

    A word of as many tokens as before is mapped one to one; otherwise each of its source tokens
    gives 1/n to the n target tokens. Every source row sums to 1, except those of pads where the
    target has a word or its end token: they are 0. ValueError if the prompts have different numbers
    of words.
    """
    ours, theirs = words_of(source), words_of(target)
    if len(ours) != len(theirs):
        raise ValueError(
            f"replace needs the same number of words: got {len(ours)} {[w.text for w in ours]} and "
            f"{len(theirs)} {[w.text for w in theirs]}; use refine"
        )
    mapping = _blank(source, target)
    mapping[0, 0] = 1.0
    for old, new in zip(ours, theirs, strict=True):
        if len(old.tokens) == len(new.tokens):
            mapping[old.tokens, new.tokens] = 1.0
        else:
            block = (
                slice(old.tokens[0], old.tokens[-1] + 1),
                slice(new.tokens[0], new.tokens[-1] + 1),
            )
            mapping[block] = 1.0 / len(new.tokens)
    for rows, columns in zip(_gaps(source, ours), _gaps(target, theirs), strict=True):
        for i, row in enumerate(rows):
            # Surplus punctuation joins the token before: the gap's last, else the word's, else BOS.
            mapping[row, min(columns.start + i, columns.stop - 1)] = 1.0
    return _with_pads(mapping, source, target, "replace")


def align_refine(source: TokenizedPrompt, target: TokenizedPrompt) -> Alignment:
    """Map the tokens that both prompts share, in order, and pads by position; the rest is own.

    The shared tokens come from a global alignment (Needleman and Wunsch 1970) of the ids from BOS
    to the first EOT.
    """
    mapping = _blank(source, target)
    for row, column in _global_alignment(
        source.ids[: source.end + 1], target.ids[: target.end + 1]
    ):
        mapping[row, column] = 1.0
    return _with_pads(mapping, source, target, "refine")


def _tokens_in(prompt: TokenizedPrompt, start: int, end: int) -> tuple[int, ...]:
    """Return the positions of the tokens that share a character with [start, end) of the text."""
    return tuple(i for i, (a, b) in enumerate(prompt.spans, 1) if a < end and start < b)


def _occurrences(prompt: TokenizedPrompt, phrase: str) -> Iterator[tuple[int, int]]:
    """Yield the spans of a phrase in the prompt's text whose ends lie inside no word."""
    phrase = clean(a_text("word", phrase))
    inside = {
        i for found in _WORD.finditer(prompt.text) for i in range(found.start() + 1, found.end())
    }
    start = prompt.text.find(phrase) if phrase else -1
    while start >= 0:
        end = start + len(phrase)
        if start not in inside and end not in inside:
            yield start, end
        start = prompt.text.find(phrase, start + 1)


def _blank(source: TokenizedPrompt, target: TokenizedPrompt) -> Tensor:
    """Return M without any entry; ValueError if the prompts' context lengths differ."""
    length = len(source.ids)
    if len(target.ids) != length:
        raise ValueError(f"context lengths differ: source {length}, target {len(target.ids)}")
    return torch.zeros(length, length, dtype=torch.float64)


def _gaps(prompt: TokenizedPrompt, words: Sequence[Word]) -> list[range]:
    """Return the positions before, between and after the words: one range more than words."""
    starts = [1, *(word.tokens[-1] + 1 for word in words)]
    stops = [*(word.tokens[0] for word in words), prompt.end]
    return [range(start, stop) for start, stop in zip(starts, stops, strict=True)]


def _with_pads(
    mapping: Tensor, source: TokenizedPrompt, target: TokenizedPrompt, mode: Mode
) -> Alignment:
    """Map the end token to the end token and what is a pad in both prompts to itself.

    Every target token without a source keeps its own attention.
    """
    mapping[source.end, target.end] = 1.0
    pads = range(max(source.end, target.end) + 1, len(source.ids))
    mapping[pads, pads] = 1.0
    return Alignment(mapping, (mapping.sum(0) == 0).double(), mode)


def _global_alignment(source: Sequence[int], target: Sequence[int]) -> list[tuple[int, int]]:
    """Return the aligned positions, last first: gap 0, match +1, mismatch -1.

    Of equal scores the first of left (a target token without source), up (a source token without
    target) and diagonal is taken. Gaps being free, it never takes a mismatch.
    """
    score = [[0] * (len(target) + 1) for _ in range(len(source) + 1)]
    for i, old in enumerate(source, 1):
        for j, new in enumerate(target, 1):
            diagonal = score[i - 1][j - 1] + (1 if old == new else -1)
            score[i][j] = max(score[i][j - 1], score[i - 1][j], diagonal)
    pairs = []
    i, j = len(source), len(target)
    while i and j:
        if score[i][j] == score[i][j - 1]:
            j -= 1
        elif score[i][j] == score[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((i, j))
    return pairs
