"""The hooks of attention: what Prompt-to-Prompt asks of one step, as tensors alone; and a hook that
sees the maps, for looking at them and for experiments.
"""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor

from nti.kernels.cfg_attention import Fold

__all__ = ["AttentionControl", "AttentionMap", "Fold", "MapCollector", "MapHook", "Site"]


@dataclass(frozen=True, eq=False)
class AttentionControl:
    """One step's control of a batch of B rows whose last E rows are edits.

    Every P2P edit of the cross-attention has the form P_edit' = P_source A + P_edit diag(b), so it
    is two ordinary attentions with premultiplied values (replace, refine and reweight are choices
    of A and b; see `nti.editing.control_schedule`). Injected self-attention is attention with
    another row's queries and keys. MasaCtrl asks for another row's keys and values instead.
    """

    fold: Fold | None = None
    """A, b and the source's rows: the edit of the cross-attention; None: there is none."""
    self_rows: Tensor | None = None
    """(B,) int64: the row whose queries and keys self-attention uses where the configuration
    injects; its own row where nothing is injected, so that one graph serves both. None: its own."""
    words: Tensor | None = None
    """(R, 77, W) indicator columns of the last R rows, R >= E: the words whose maps, after the
    edit, are returned.
    """
    value_rows: Tensor | None = None
    """(S, B) int64: for each of the UNet's S self-attention layers, in the order in which data
    passes them, the row whose keys and values each row uses (MasaCtrl). None: its own."""


@dataclass(frozen=True)
class Site:
    """One attention layer of the UNet."""

    place: str
    """`down`, `middle` or `up`."""
    level: int
    """The resolution's level, 0 the finest."""
    block: int
    """Which transformer of its level, 0 the first that data passes."""
    kind: str
    """`self` or `cross`."""


@runtime_checkable
class MapHook(Protocol):
    """What sees full attention maps, and may change them: never on the working path.

    A site that the hook wants computes its map (B, heads, L, S) in memory and multiplies it with
    the values.
    """

    def wants(self, site: Site) -> bool:
        """Whether this site's map is asked for."""

    def __call__(self, site: Site, maps: Tensor) -> Tensor:
        """Return the probabilities to go on with: (B, heads, L, S), after the control's edit."""


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """One site's full probabilities."""

    site: Site
    probabilities: Tensor
    """(B, heads, L, S): the positions of the site's feature map, row by row, and the keys."""


@dataclass(frozen=True, eq=False)
class MapCollector:
    """A hook that keeps the maps of some kinds, levels and places, and changes none."""

    kinds: frozenset[str] = frozenset({"self", "cross"})
    levels: frozenset[int] | None = None
    """None: all. At level 0 of a 512 px image one site's self-attention has 134 million entries."""
    places: frozenset[str] | None = None
    """None: all."""
    maps: list[AttentionMap] = field(default_factory=list)

    def wants(self, site: Site) -> bool:
        """Whether a map of this site is kept."""
        return (
            site.kind in self.kinds
            and (self.levels is None or site.level in self.levels)
            and (self.places is None or site.place in self.places)
        )

    def __call__(self, site: Site, maps: Tensor) -> Tensor:
        """Keep the map, and go on with it."""
        self.maps.append(AttentionMap(site, maps))
        return maps
