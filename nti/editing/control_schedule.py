"""The schedule of controls: which attention an edit receives at which step, as one
`AttentionControl` a step.

Prompt-to-Prompt's edits of the cross-attention (arXiv 2208.01626, section 3.2) compose to P_edit' =
P_source A_t + P_edit diag(b_t). With the mapping M and keep vector k of the alignment, the
equalizer c (reweight) and the step's per-token window a_t in {0, 1}:

    A_t = M diag(c a_t)        b_t = c a_t k + (1 - a_t)
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nti.arguments import a_number, a_text, shown
from nti.editing.alignment import Alignment, has_word, token_positions
from nti.networks.control import AttentionControl, Fold
from nti.networks.tokenizer import TokenizedPrompt

__all__ = [
    "DEFAULT",
    "ControlSchedule",
    "CrossWindow",
    "Window",
    "cross_windows",
    "equalizer",
    "self_windows",
]

Window = float | tuple[float, float]
"""A share of the steps from the start, or (start, end)."""

CrossWindow = Window | Mapping[str, Window]
"""A window for all words, or one for each word of the edited prompt, the rest under `default_`."""

DEFAULT = "default_"

EXAMPLE = "a factor for each word, such as {'tiger': 2.0}"


def _bounds(window: Window, count: int, name: str) -> tuple[int, int]:
    """Turn a window into [first, past the last) steps; ValueError if it leaves [0, 1]."""
    with contextlib.suppress(ValueError):  # of another number of numbers, too
        start, end = (
            a_number(name, x, 0.0, 1.0)
            for x in (window if isinstance(window, tuple) else (0.0, window))
        )
        if start <= end:
            return int(start * count), int(end * count)
    raise ValueError(
        f"{name}: got {shown(window)}, expected a number in [0, 1]"
        f" or (start, end) with 0 <= start <= end <= 1"
    )


def self_windows(windows: Sequence[Window], steps: int) -> tuple[tuple[int, int], ...]:
    """Return each edit's steps with injected self-attention: [int(start T), int(end T))."""
    return tuple(_bounds(window, steps, "self_replace") for window in windows)


def cross_windows(
    windows: Sequence[CrossWindow], prompts: Sequence[TokenizedPrompt], steps: int
) -> Tensor:
    """Return a_t of every edit, (T, E, 77) float64: 1 where a token's window holds the step.

    A window covers [int(start (T + 1)), int(end (T + 1))). In a mapping without `default_` the
    other words have (0, 1). ValueError for a word that no edited prompt has.
    """
    length = len(prompts[0].ids)
    active = torch.zeros(steps, len(prompts), length, dtype=torch.float64)
    for word in dict.fromkeys(
        w for window in windows if isinstance(window, Mapping) for w in window
    ):
        if a_text("cross_replace", word) != DEFAULT:
            _require_somewhere(word, windows, prompts)
    for edit, (window, prompt) in enumerate(zip(windows, prompts, strict=True)):
        words = dict(window) if isinstance(window, Mapping) else {DEFAULT: window}
        first, last = _bounds(words.pop(DEFAULT, 1.0), steps + 1, "cross_replace")
        active[first:last, edit] = 1.0
        for word, its_window in words.items():
            if has_word(prompt, word):
                positions = list(token_positions(prompt, word))
                first, last = _bounds(its_window, steps + 1, f"cross_replace[{word!r}]")
                active[:, edit, positions] = 0.0
                active[first:last, edit, positions] = 1.0
    return active


def equalizer(
    factors: Sequence[Mapping[str, float] | None], prompts: Sequence[TokenizedPrompt]
) -> Tensor:
    """Return c of every edit, (E, 77) float64: each word's factor on all its tokens, 1 elsewhere.

    ValueError for a factor that is not finite, or a word that no edit that weighs it has.
    """
    c = torch.ones(len(prompts), len(prompts[0].ids), dtype=torch.float64)
    checked = [_checked_factors(words) for words in factors]
    for word in dict.fromkeys(w for words in checked for w in words):
        _require_somewhere(word, checked, prompts)
    for edit, (words, prompt) in enumerate(zip(checked, prompts, strict=True)):
        for word, factor in words.items():
            if has_word(prompt, word):
                c[edit, list(token_positions(prompt, word))] = factor
    return c


def _checked_factors(words: Mapping[str, float] | None) -> dict[str, float]:
    if words is None:
        return {}
    if not isinstance(words, Mapping):
        raise ValueError(f"reweight: got {shown(words)}, expected {EXAMPLE}")
    try:
        return {
            a_text("reweight", word): a_number(f"reweight[{word!r}]", factor)
            for word, factor in words.items()
        }
    except ValueError as error:
        raise ValueError(f"{error}: give {EXAMPLE}") from None


def _require_somewhere(
    word: str, settings: Sequence[object], prompts: Sequence[TokenizedPrompt]
) -> None:
    """Raise ValueError unless an edit whose setting names the word has it in its prompt."""
    named = [
        p for s, p in zip(settings, prompts, strict=True) if isinstance(s, Mapping) and word in s
    ]
    if not any(has_word(prompt, word) for prompt in named):
        token_positions(named[0], word)


@dataclass(frozen=True, eq=False)
class ControlSchedule:
    """All T steps' controls of E edits, in batches whose last 1 + E rows are source and edits."""

    source_mix: Tensor
    """A_t (T, E, 77, 77)."""
    own_mix: Tensor
    """b_t (T, E, 77)."""
    inject_self: tuple[tuple[int, int], ...]
    """[first, past the last) step of injected self-attention, of each edit."""
    needs_source: tuple[bool, ...]
    """(T,) whether an edit still receives the source's attention."""

    @classmethod
    def create(
        cls,
        alignments: Sequence[Alignment],
        active: Tensor,
        c: Tensor,
        inject_self: tuple[tuple[int, int], ...],
    ) -> "ControlSchedule":
        """Fold alignments, windows a_t (T, E, 77) and equalizers c (E, 77) into A_t and b_t."""
        mapping = torch.stack([a.mapping for a in alignments])
        own = torch.stack([a.own for a in alignments])
        weight = c * active
        source_mix = weight[:, :, None, :] * mapping
        own_mix = weight * own + (1.0 - active)
        mixes = source_mix.flatten(1).any(dim=1) | (own_mix != 1).flatten(1).any(dim=1)
        needs_source = tuple(
            mixed or any(first <= step < last for first, last in inject_self)
            for step, mixed in enumerate(mixes.tolist())
        )
        return cls(source_mix, own_mix, inject_self, needs_source)

    def to(self, device: torch.device, dtype: torch.dtype) -> "ControlSchedule":
        """Return the schedule elsewhere."""
        return ControlSchedule(
            self.source_mix.to(device, dtype),
            self.own_mix.to(device, dtype),
            self.inject_self,
            self.needs_source,
        )

    @property
    def steps(self) -> int:
        """T."""
        return self.source_mix.shape[0]

    @property
    def largest(self) -> float:
        """The largest absolute value in A_t and b_t, which a dtype must be able to hold."""
        return float(max(self.source_mix.abs().max(), self.own_mix.abs().max()))

    def control(self, step: int, rows: int, words: Tensor | None) -> AttentionControl:
        """Return one step's control for a batch of `rows`, the last of them source and edits.

        `words` are the indicator columns (1 + E, 77, W) whose maps are wanted, or None.
        """
        edits = self.source_mix.shape[1]
        device = self.source_mix.device
        source = rows - edits - 1
        self_rows = list(range(rows))
        for row, (first, last) in enumerate(self.inject_self, start=source + 1):
            if first <= step < last:
                self_rows[row] = source
        source_rows = torch.full((edits,), source, device=device)
        fold = Fold(source_rows, self.source_mix[step], self.own_mix[step])
        return AttentionControl(fold, torch.tensor(self_rows, device=device), words)
