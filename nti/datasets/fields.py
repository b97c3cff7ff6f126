"""The settings that a run and its items have: their names, and how text or JSON says them.

The same names are columns of a CSV file, keys of a JSON line and `--set NAME=VALUE`.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from nti.editing.editors import EDITORS
from nti.inversion.null_text import published_learning_rate, published_threshold
from nti.inversion.settings import InversionSettings
from nti.parsing import (
    parse_assignment,
    parse_blend,
    parse_cross_window,
    parse_rule,
    parse_size,
    parse_window,
)

__all__ = ["EDIT", "INVERSION", "PLACES", "Given", "canonical", "edit_settings", "invert_settings"]

Given = Mapping[str, Any]
"""Settings by name as they were given, each a value that JSON can hold."""

PLACES = ("size", "fit")
"""How an image is brought to the model's size."""

INVERSION = (*PLACES, *InversionSettings.__dataclass_fields__)
"""Settings of an inversion."""

APART = ("guidance_scale", "seed")
"""Names that inversions and edits share: those of edits begin with `edit_`."""

IN_CODE = ("original", "replay")
"""Settings of editors that no table has."""

EDIT = (
    "editor",
    *dict.fromkeys(
        f"edit_{name}" if name in APART else name
        for row in EDITORS.values()
        for name in row.takes
        if name not in IN_CODE
    ),
)
"""Settings of an edit."""


def canonical(name: str, text: str) -> Any:
    """Return what a cell or `--set` says, as JSON has it: a number, a list, or the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def invert_settings(given: Given) -> tuple[InversionSettings, dict[str, Any]]:
    """Return the settings of an inversion, and size and fit where they are given.

    Raises ValueError, its message beginning with the setting's name.
    """
    found = {name: _read(name, value) for name, value in given.items() if name in INVERSION}
    places = {name: found.pop(name) for name in PLACES if name in found}
    return InversionSettings(**found), places


def edit_settings(given: Given) -> tuple[str, dict[str, Any]]:
    """Return the editor's name and the keywords of its function.

    Raises ValueError for an unknown editor, or for a setting that it does not take.
    """
    name = str(given.get("editor", "p2p"))
    if name not in EDITORS:
        raise ValueError(f"editor: got {name!r}, expected one of {', '.join(EDITORS)}")
    takes, found = EDITORS[name].takes, {}
    for field, value in given.items():
        if field not in EDIT or field == "editor":
            continue
        keyword = field.removeprefix("edit_")
        if keyword not in takes:
            raise ValueError(
                f"{field}: got it for {name}, which does not take it; it is a setting of"
                f" {', '.join(row.name for row in EDITORS.values() if keyword in row.takes)}"
            )
        found[keyword] = _read(field, value)
    return name, found


def _read(name: str, value: Any) -> Any:
    """Return a setting as the library's functions take it."""
    reader = READERS.get(name)
    return value if reader is None or value is None else reader(name, value)


def _size(name: str, value: Any) -> Any:
    return parse_size(value, name) if isinstance(value, str) else _pair(value)


def _pair(value: Any) -> Any:
    """JSON has lists where the library has pairs."""
    return tuple(value) if isinstance(value, list) else value


def _window(name: str, value: Any) -> Any:
    return parse_window(value, name) if isinstance(value, str) else _pair(value)


def _cross(name: str, value: Any) -> Any:
    if isinstance(value, str):
        return parse_cross_window(value.split(","), name)
    if isinstance(value, dict):
        return {word: _window(name, window) for word, window in value.items()}
    return _pair(value)


def _words(name: str, value: Any) -> Any:
    if isinstance(value, str):
        return parse_blend(value)
    return tuple(_pair(words) for words in value) if isinstance(value, list) else value


def _factors(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return dict(parse_assignment(part, name) for part in value.split(","))


def _proximal(name: str, value: Any) -> Any:
    from nti.editing.proximal import Proximal

    try:
        return Proximal(value) if isinstance(value, str) else Proximal(**value)
    except TypeError:
        raise ValueError(f"{name}: got {value!r}, expected l0, l1 or Proximal's fields") from None


def _rule(published: Any) -> Callable[[str, Any], Any]:
    return lambda name, value: parse_rule(str(value), published, name)


READERS: dict[str, Callable[[str, Any], Any]] = {
    "size": _size,
    "learning_rate": _rule(published_learning_rate),
    "threshold": _rule(published_threshold),
    "cross_replace": _cross,
    "self_replace": _window,
    "blend": _words,
    "subtract": _words,
    "reweight": _factors,
    "proximal": _proximal,
}
"""Of settings that text or JSON says in another way than the library's functions."""
