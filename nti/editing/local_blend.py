"""Local blend: an edit changes the image only where its words attend (Prompt-to-Prompt's
`LocalBlend`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from nti.arguments import a_number, shown, texts
from nti.editing.alignment import has_word, token_positions
from nti.networks.tokenizer import TokenizedPrompt

__all__ = ["BlendWords", "LocalBlend", "blend_mask", "changing_region"]

Words = str | Sequence[str]
"""A word or phrase; or several, separated by commas or in a sequence."""

BlendWords = str | tuple[Words, Words]
"""Words whose regions count: (in the source's prompt, in the edit's), or the same in both."""

THRESHOLD = 0.3
"""Share of its maximum above which a word's map counts."""
START = 0.2
"""Share of the steps before blending begins, at step int(0.2 T)."""
POOL = 3
"""Side of the window in which a blend word's map takes its maximum."""


def blend_mask(
    maps: Tensor, size: tuple[int, int], *, pool: bool, threshold: float | Tensor = THRESHOLD
) -> Tensor:
    """Word maps summed so far (R, h', w') -> (R, h, w) bool: above a share of each maximum.

    A map that is zero everywhere (a word weighted by 0) gives an empty mask.
    """
    x = maps[:, None]
    if pool:
        x = F.max_pool2d(x, POOL, stride=1, padding=POOL // 2)
    x = F.interpolate(x, size=size)[:, 0]
    return x > threshold * x.amax(dim=(1, 2), keepdim=True)


def changing_region(
    maps: Tensor,
    size: tuple[int, int],
    blends: Tensor,
    subtracts: Tensor,
    threshold: float | Tensor = THRESHOLD,
) -> Tensor:
    """Where each edit may change the image.

    Args:
        maps: (1 + E, 2 E, h', w'), source first, summed over the steps so far.
        size: (h, w) of the latent.
        blends: (E,) bool, see `LocalBlend`.
        subtracts: (E,) bool.
        threshold: see `THRESHOLD`.

    Returns:
        (E, h, w) bool: the edit's mask united with the source's, less the subtracted, likewise.

    """
    pairs = rearrange(maps, "rows (edits pair) h w -> rows edits pair h w", pair=2)
    of_source, of_edit = pairs[0], torch.stack([pairs[1 + e, e] for e in range(len(blends))])
    keep, drop = (
        blend_mask(of_edit[:, i], size, pool=i == 0, threshold=threshold)
        | blend_mask(of_source[:, i], size, pool=i == 0, threshold=threshold)
        for i in range(2)
    )
    blends, subtracts = (x[:, None, None] for x in (blends, subtracts))
    return (keep | ~blends) & ~(drop & subtracts)


@dataclass(frozen=True, eq=False)
class LocalBlend:
    """Which of E edits blend and which subtract, and the columns in which their word maps come."""

    words: Tensor
    """(1 + E, 77, 2 E) indicator columns of source and edits; each edit has a blend and a
    subtract column."""
    blends: Tensor
    """(E,) bool: edits without blend words change everywhere."""
    subtracts: Tensor
    """(E,) bool."""
    start: float = START
    threshold: float = THRESHOLD

    def __post_init__(self) -> None:
        start, threshold = _shares(self.start, self.threshold)
        object.__setattr__(self, "start", start)
        object.__setattr__(self, "threshold", threshold)

    @classmethod
    def create(
        cls,
        source: TokenizedPrompt,
        edits: Sequence[TokenizedPrompt],
        blend: Sequence[BlendWords | None],
        subtract: Sequence[BlendWords | None],
        *,
        start: float = START,
        threshold: float = THRESHOLD,
    ) -> "LocalBlend | None":
        """Look each word up in its own prompt; None where no edit has any.

        ValueError for a word that is in no prompt that it was named for.
        """
        _shares(start, threshold)
        if all(setting is None for setting in (*blend, *subtract)):
            return None
        words = torch.zeros(1 + len(edits), len(source.ids), 2 * len(edits), dtype=torch.float64)
        for offset, (name, settings) in enumerate((("blend", blend), ("subtract", subtract))):
            pairs = [None if setting is None else _pair(name, setting) for setting in settings]
            _require_somewhere(settings, pairs, source, edits)
            for edit, pair in enumerate(pairs):
                if pair is not None:
                    _mark(words[0, :, 2 * edit + offset], source, pair[0])
                    _mark(words[1 + edit, :, 2 * edit + offset], edits[edit], pair[1])
        return cls(
            words,
            blends=torch.tensor([setting is not None for setting in blend]),
            subtracts=torch.tensor([setting is not None for setting in subtract]),
            start=start,
            threshold=threshold,
        )

    def to(self, device: torch.device, dtype: torch.dtype) -> "LocalBlend":
        """Return the blend elsewhere."""
        return replace(
            self,
            words=self.words.to(device, dtype),
            blends=self.blends.to(device),
            subtracts=self.subtracts.to(device),
        )

    def first_step(self, steps: int) -> int:
        """Return the first blended step."""
        return int(self.start * steps)

    def mask(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Return `changing_region` (E, h, w) of maps (1 + E, 2 E, h', w') summed so far."""
        return changing_region(maps, size, self.blends, self.subtracts, self.threshold)


def _require_somewhere(
    settings: Sequence[BlendWords | None],
    pairs: Sequence[tuple[list[str], list[str]] | None],
    source: TokenizedPrompt,
    edits: Sequence[TokenizedPrompt],
) -> None:
    """Raise ValueError for a word that is in none of the prompts that it was named for.

    A pair names the source's prompt for its first side and the edit's for its second; a single
    setting names both prompts for every word.
    """
    named: dict[tuple[str, str], list[TokenizedPrompt]] = {}
    for setting, pair, prompt in zip(settings, pairs, edits, strict=True):
        if pair is not None:
            sides = ("both", "both") if isinstance(setting, str) else ("source", "edit")
            for side, words, where in zip(sides, pair, (source, prompt), strict=True):
                for word in words:
                    named.setdefault((side, word), []).append(where)
    for (_, word), prompts in named.items():
        if not any(has_word(prompt, word) for prompt in prompts):
            token_positions(prompts[-1], word)


def _pair(name: str, setting: BlendWords) -> tuple[list[str], list[str]]:
    """Return the words for the source's prompt and those for the edit's."""
    sides = (setting, setting) if isinstance(setting, str) else setting
    if isinstance(sides, tuple) and len(sides) == 2:
        ours, theirs = (
            [word.strip() for words in texts(name, side) for word in words.split(",")]
            for side in sides
        )
        if any(ours) and any(theirs):
            return ours, theirs
    raise ValueError(
        f"{name}: got {shown(setting)}, expected words of both prompts, such as 'cat', or a tuple"
        " (the source's words, the edit's), such as ('cat', 'tiger')"
    )


def _shares(start: object, threshold: object) -> tuple[float, float]:
    """Return blend's start and threshold; ValueError for what is no share."""
    share = a_number("blend_threshold", threshold, 0, 1, ", a share of the maximum")
    if share == 1:
        raise ValueError(f"blend_threshold: got {share}, expected less: no map exceeds its maximum")
    return a_number("blend_start", start, 0, 1, ", a share of the steps"), share


def _mark(column: Tensor, prompt: TokenizedPrompt, words: Sequence[str]) -> None:
    """Set the tokens of words and phrases to 1, where the prompt has them."""
    for word in words:
        if has_word(prompt, word):
            column[list(token_positions(prompt, word))] = 1.0
