"""The settings that a run and its items have: their names, and how text or JSON says them.

The same names are columns of a CSV file, keys of a JSON line and `--set NAME=VALUE`.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from nti.arguments import a_choice, a_number, a_whole_number
from nti.editing.editors import EDITORS
from nti.image import FITS
from nti.inversion.methods import METHODS
from nti.inversion.null_text import published_learning_rate, published_threshold
from nti.inversion.settings import FOR_ALL, InversionSettings
from nti.inversion.source import width_and_height
from nti.parsing import (
    parse_assignment,
    parse_blend,
    parse_cross_window,
    parse_rule,
    parse_size,
    parse_window,
)

__all__ = [
    "EDIT",
    "INVERSION",
    "PLACES",
    "Given",
    "canonical",
    "edit_settings",
    "invert_settings",
    "read_by",
]

Given = Mapping[str, Any]
"""Settings by name as they were given, each a value that JSON can hold."""

PLACES = ("size", "fit")
"""How an image is brought to the model's size."""

INVERSION = (*PLACES, *InversionSettings.__dataclass_fields__)
"""Settings of an inversion."""

TAKEN = tuple(dict.fromkeys(name for row in EDITORS.values() for name in row.takes))

APART = tuple(name for name in TAKEN if name in INVERSION)
"""Names that inversions and edits share: those of edits begin with `edit_`."""

IN_CODE = ("original", "replay")
"""Settings of editors that no table has."""

EDIT = (
    "editor",
    *(f"edit_{name}" if name in APART else name for name in TAKEN if name not in IN_CODE),
)
"""Settings of an edit."""


def canonical(text: str) -> Any:
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
    name = a_choice("editor", given.get("editor", "p2p"), EDITORS)
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


def read_by(given: Given, method: Any, editor: Any) -> Given:
    """Return those settings that a method reads and an editor takes; all where there is none."""
    reads = METHODS[method].settings if isinstance(method, str) and method in METHODS else None
    takes = EDITORS[editor].takes if isinstance(editor, str) and editor in EDITORS else None

    def is_read(name: str) -> bool:
        if name in ("editor", *PLACES, *FOR_ALL):
            return True
        if name in INVERSION:
            return reads is None or name in reads
        return takes is None or name.removeprefix("edit_") in takes

    return {name: value for name, value in given.items() if is_read(name)}


def _read(name: str, value: Any) -> Any:
    """Return a setting as the library's functions take it; ValueError begins with its name."""
    reader = READERS.get(name)
    if reader is None or value is None:
        return value
    try:
        return reader(name, value)
    except (ValueError, TypeError) as error:
        told = str(error)
        raise ValueError(told if told.startswith(f"{name}: ") else f"{name}: {told}") from error


def _size(name: str, value: Any) -> Any:
    size = parse_size(value, name) if isinstance(value, str) else _pair(value)
    return size if size == "native" else width_and_height(size, " or 'native'")


def _fit(name: str, value: Any) -> Any:
    return a_choice(name, value, FITS)


def _number(low: float = -math.inf, high: float = math.inf) -> Callable[[str, Any], Any]:
    return lambda name, value: a_number(name, value, low, high)


def _whole(low: int = 0) -> Callable[[str, Any], Any]:
    return lambda name, value: a_whole_number(name, value, low)


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
    "fit": _fit,
    "edit_guidance_scale": _number(),
    "edit_seed": _whole(),
    "edit_learning_rate": _number(0),
    "strength": _number(0, 1),
    "mix": _number(),
    "eta": _number(),
    "mask_threshold": _number(0, 1),
    "start": _whole(),
    "learning_rate": _rule(published_learning_rate),
    "threshold": _rule(published_threshold),
    "cross_replace": _cross,
    "self_replace": _window,
    "blend": _words,
    "subtract": _words,
    "reweight": _factors,
    "proximal": _proximal,
}
"""Of settings that text or JSON says in another way than the library's functions, and of those that
the functions would only look at after the inversion."""
