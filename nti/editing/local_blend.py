"""Local blend: an edit changes the image only where its words attend (Prompt-to-Prompt's
`LocalBlend`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nti.editing.alignment import has_word, token_positions
from nti.networks.tokenizer import TokenizedPrompt

__all__ = ["BlendWords", "LocalBlend", "blend_mask", "word_columns"]

BlendWords = str | tuple[str, str]
"""Words whose regions count: (in the source's prompt, in the edited prompt), or the same in both.
Several words are several tokens of a phrase, or are separated by commas."""

THRESHOLD = 0.3
START = 0.2
"""Blending begins at step int(0.2 T)."""


def blend_mask(maps: Tensor, size: tuple[int, int], *, pool: bool) -> Tensor:
    """Word maps summed so far (R, h', w') -> a mask (R, h, w) of bool: above 0.3 of the map's
    maximum.

    A map that is zero everywhere (a word weighted by 0) gives an empty mask.
    """
    x = maps[:, None]
    if pool:
        x = F.max_pool2d(x, 3, stride=1, padding=1)
    x = F.interpolate(x, size=size)[:, 0]
    return x > THRESHOLD * x.amax(dim=(1, 2), keepdim=True)


@dataclass(frozen=True)
class LocalBlend:
    """Which edits blend and which subtract; word maps have two columns, blend and subtract."""

    blends: Tensor
    """(E,) bool: edits without blend words change everywhere."""
    subtracts: Tensor
    """(E,) bool."""

    @staticmethod
    def starts(steps: int) -> int:
        """Return the first blended step."""
        return int(START * steps)

    def mask(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Where each edit may change the image.

        Args:
            maps: (1 + E, 2, h', w'), source first, summed over the steps so far.
            size: (h, w) of the latent.

        Returns:
            (E, h, w) bool: the edit's mask united with the source's, less the subtracted (likewise
            united).

        """
        keep = blend_mask(maps[:, 0], size, pool=True)
        drop = blend_mask(maps[:, 1], size, pool=False)
        keep = (keep[1:] | keep[:1]) | ~self.blends[:, None, None]
        drop = (drop[1:] | drop[:1]) & self.subtracts[:, None, None]
        return keep & ~drop


def word_columns(
    source: TokenizedPrompt,
    edits: Sequence[TokenizedPrompt],
    blend: Sequence[BlendWords | None],
    subtract: Sequence[BlendWords | None],
) -> tuple[Tensor, LocalBlend] | None:
    """Return the indicator columns (1 + E, 77, 2) of blend and subtract words, or None where no
    edit has any.

    The source's row holds the union of what the edits name in the source's prompt. ValueError for a
    word that is in none of the prompts it is looked for in, or edits that name different source
    words.
    """
    if not any(blend) and not any(subtract):
        return None
    columns = torch.zeros(1 + len(edits), len(source.ids), 2, dtype=torch.float64)
    for column, (name, settings) in enumerate((("blend", blend), ("subtract", subtract))):
        named = {_pair(words)[0] for words in settings if words is not None}
        if len(named) > 1:
            raise ValueError(
                f"{name}: got different source words {sorted(named)}, expected one:"
                f" the source has one map for all edits of a batch; run the edits apart"
            )
        for row, words in enumerate(settings, 1):
            if words is not None:
                in_source, in_edit = _pair(words)
                found = _mark(columns[0, :, column], source, in_source)
                found |= _mark(columns[row, :, column], edits[row - 1], in_edit)
                if not found:
                    token_positions(source, in_source.split(",")[0].strip())
    return columns, LocalBlend(
        blends=torch.tensor([words is not None for words in blend]),
        subtracts=torch.tensor([words is not None for words in subtract]),
    )


def _pair(words: BlendWords) -> tuple[str, str]:
    return (words, words) if isinstance(words, str) else words


def _mark(column: Tensor, prompt: TokenizedPrompt, words: str) -> bool:
    """Set the tokens of comma-separated words and phrases to 1; say whether any was found."""
    found = [word.strip() for word in words.split(",") if has_word(prompt, word.strip())]
    for word in found:
        column[list(token_positions(prompt, word))] = 1.0
    return bool(found)
