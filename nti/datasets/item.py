"""What a manifest holds: items, each an image with its caption and its edits."""

import hashlib
import json
from dataclasses import dataclass, field, replace

from nti.datasets.fields import EDIT, INVERSION, Given
from nti.editing.editors import EDITORS

__all__ = ["Edit", "Item", "Manifest", "ManifestError", "Problem"]


class ManifestError(ValueError):
    """A manifest that cannot be used at all."""


@dataclass(frozen=True)
class Edit:
    """One edited prompt, and the settings that it alone has."""

    prompt: str
    settings: Given = field(default_factory=dict)
    defaults: Given = field(default_factory=dict)
    """What the manifest's layout suggests: it comes after all settings that are given, and counts
    for editors that take it."""


@dataclass(frozen=True)
class Item:
    """One image, and what is to become of it."""

    id: str
    """Its name in the results, of letters that a file's name may have."""
    image: str
    """A path, or an address that fsspec opens."""
    prompt: str | None
    """What the image shows; None: a captioner shall say."""
    edits: tuple[Edit, ...]
    """None at all: the image is only inverted."""
    settings: Given
    """Those that override the run's."""
    place: str
    """Where it stands, as `rows.csv: row 3`."""
    kind: str = ""
    """Of its edits, for averages."""
    mask: str | tuple[int, ...] | None = None
    """White where to edit: a path or address, or PIE-Bench's run lengths."""
    written_as: str | None = None
    """Where PIE-Bench's evaluator looks for the edit, relative to the results."""

    def merged(self, run: Given) -> "Item":
        """Return the item with all settings: the run's, then its own, then each edit's."""
        whole = {**run, **self.settings}
        own = {name: value for name, value in whole.items() if name in INVERSION}
        shared = {name: value for name, value in whole.items() if name in EDIT}
        return replace(
            self, settings=own, edits=tuple(_merged(edit, shared) for edit in self.edits)
        )

    @property
    def request(self) -> str:
        """A digest of all that its result is made from, but the bytes of its files."""
        told = [
            self.image, self.prompt, [[e.prompt, dict(e.settings)] for e in self.edits],
            dict(self.settings), self.mask,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a manifest."""

    place: str
    """As `rows.csv: row 3`."""
    field: str
    message: str
    id: str = ""
    """Of the item that cannot be made, where it has one."""

    def __str__(self) -> str:
        return f"{self.place}: {self.field}: {self.message}"


@dataclass(frozen=True)
class Manifest:
    """What a run is to make."""

    address: str
    items: tuple[Item, ...]
    problems: tuple[Problem, ...] = ()


def _merged(edit: Edit, shared: Given) -> Edit:
    given = {**shared, **edit.settings}
    row = EDITORS.get(given.get("editor", "p2p"))
    takes = () if row is None else row.takes
    suggested = {name: value for name, value in edit.defaults.items() if name in takes}
    return Edit(edit.prompt, {**suggested, **given})
