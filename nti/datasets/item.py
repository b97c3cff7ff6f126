"""What a manifest holds: items, each an image with its caption and its edits."""

import hashlib
import json
import re
from dataclasses import dataclass, field, replace

from nti.datasets.fields import EDIT, INVERSION, Given, read_by

__all__ = ["Edit", "Item", "Manifest", "ManifestError", "Problem", "check_id"]

MOST_NAME = 150


class ManifestError(ValueError):
    """A manifest that cannot be used at all."""


def check_id(name: object) -> str:
    """Return an item's id, which can be a folder's name on every system of files, or ValueError."""
    fits = isinstance(name, str) and re.fullmatch(r"[^\W_]([\w .,+&()'-]*[\w)])?", name)
    if not isinstance(name, str) or not fits or len(name.encode()) > MOST_NAME:
        raise ValueError(
            f"got {name!r}, expected a letter or digit, then letters, digits, spaces and any of"
            f" . , + & ( ) ' - _, at most {MOST_NAME} bytes in all"
        )
    return name


@dataclass(frozen=True)
class Edit:
    """One edited prompt, and the settings that it alone has."""

    prompt: str
    settings: Given = field(default_factory=dict)
    defaults: Given = field(default_factory=dict)
    """What the manifest's layout suggests: it comes after all settings that are given, and counts
    for editors that take it. Of a merged item those that count, which `settings` has, too."""


@dataclass(frozen=True)
class Item:
    """One image, and what is to become of it."""

    id: str
    """Its name in the results, of letters that a file's name may have."""
    image: str
    """A path, or an address that fsspec opens."""
    named: str
    """The same as the manifest names it."""
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
    mask_named: str | None = None
    """A mask's file as the manifest names it."""
    written_as: str | None = None
    """Where PIE-Bench's evaluator looks for the edit, relative to the results."""

    def merged(self, run: Given) -> "Item":
        """Return the item with all settings: the run's, then its own, then each edit's.

        Where it chooses another method or editor than the run, what only the run's reads is left
        out.
        """
        method = self.settings.get("method", run.get("method", "null-text"))
        own = {**_for_method(run, method), **self.settings}
        found = {name: value for name, value in own.items() if name in INVERSION}
        edits = tuple(_merged(edit, run, self.settings) for edit in self.edits)
        return replace(self, settings=found, edits=edits)

    @property
    def request(self) -> str:
        """A digest of all that its result is made from, but the bytes of its files."""
        told = [
            self.named, self.prompt, [[e.prompt, dict(e.settings)] for e in self.edits],
            dict(self.settings), self.mask_named or self.mask,
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


def _for_method(run: Given, method: object) -> Given:
    same = method == run.get("method", "null-text")
    return run if same else read_by(run, method, None)


def _merged(edit: Edit, run: Given, item: Given) -> Edit:
    own = {**{name: value for name, value in item.items() if name in EDIT}, **edit.settings}
    editor = own.get("editor", run.get("editor", "p2p"))
    shared = run if editor == run.get("editor", "p2p") else read_by(run, None, editor)
    given = {**{name: value for name, value in shared.items() if name in EDIT}, **own}
    suggested = read_by(edit.defaults, None, editor)
    unsaid = {name: value for name, value in suggested.items() if name not in given}
    return Edit(edit.prompt, {**unsaid, **given}, unsaid)
