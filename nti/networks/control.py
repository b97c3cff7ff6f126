"""The hook: what Prompt-to-Prompt asks of the attention in one step, as tensors alone."""

from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["AttentionCapture", "AttentionControl", "AttentionMap"]


@dataclass(frozen=True, eq=False)
class AttentionControl:
    """One step's control of a batch of B rows whose last E rows are edits.

    Every P2P edit of the cross-attention has the form P_edit' = P_source A + P_edit diag(b), so it
    is two ordinary attentions with premultiplied values (replace, refine and reweight are choices
    of A and b; see `nti.editing.controls`). Injected self-attention is attention with another row's
    queries and keys.
    """

    source_rows: Tensor
    """(E,) int64: the row of each edit's source, whose probabilities P_source it receives."""
    source_mix: Tensor
    """A (E, 77, 77): rows are source tokens, columns the edit's tokens."""
    own_mix: Tensor
    """b (E, 77): how much of its own attention each token of the edit keeps."""
    self_rows: Tensor
    """(B,) int64: the row whose queries and keys self-attention uses where the configuration
    injects; its own row where nothing is injected, so that one graph serves both."""
    words: Tensor | None = None
    """(R, 77, W) indicator columns of the last R rows, R >= E: the words whose maps, after the
    edit, are returned.
    """


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """One site's full probabilities, for looking at (never on the working path)."""

    site: str
    """`down`, `middle` or `up`."""
    level: int
    """The resolution's level, 0 the finest."""
    kind: str
    """`self` or `cross`."""
    probabilities: Tensor
    """(B, heads, h, w, keys), after the control's edit."""


@dataclass(frozen=True, eq=False)
class AttentionCapture:
    """A request for full maps of some kinds and levels, and the list that receives them."""

    kinds: frozenset[str] = frozenset({"self", "cross"})
    levels: frozenset[int] | None = None
    """None: all. At level 0 of a 512 px image one site's self-attention has 134 million entries."""
    maps: list[AttentionMap] = field(default_factory=list)

    def wants(self, kind: str, level: int) -> bool:
        """Whether a map of this kind is asked for at this level."""
        return kind in self.kinds and (self.levels is None or level in self.levels)
