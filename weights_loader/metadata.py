"""JSON that strangers wrote, into checked dataclasses: a checkpoint's metadata and configuration
files, a saved inversion's header.
"""

import re
from typing import TypeVar

import msgspec

__all__ = ["LONGEST", "convert", "decode", "printable"]

T = TypeVar("T")

LONGEST = 16 * 2**20
"""Bytes of JSON that are read at most."""

STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)

DEEPEST = 64
"""Brackets within each other. Whoever walks or shows a value may do so by recursion."""

SHOWN = 500
"""Characters of a stranger's text that are shown at most."""


def decode(text: str | bytes, kind: type[T], what: str) -> T:
    """Read JSON as a type: every field must be there, of its type and within its bounds.

    Args:
        text: JSON. A byte order mark before it is skipped.
        kind: a dataclass or any type that msgspec knows. `Annotated[int, msgspec.Meta(ge=1)]`
            bounds a number; a ValueError of a dataclass's own check counts as well.
        what: names the text in an error: the file and the entry.

    Raises:
        ValueError: text that is no JSON or does not fit the type; the message names the field.

    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    data = data.removeprefix(b"\xef\xbb\xbf")
    if len(data) > LONGEST:
        raise ValueError(f"{what}: got {len(data)} bytes of JSON, expected {LONGEST} at most")
    if _depth(data) > DEEPEST:
        raise ValueError(f"{what}: got JSON nested more than {DEEPEST} deep, expected less")
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"{what}: {_in_words(error)}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{what}: got text that is no JSON ({error})") from None


def _depth(data: bytes) -> int:
    """Return how deep brackets are nested, those in strings aside."""
    depth = deepest = 0
    outside = STRING.sub(b"", data)
    for bracket in re.findall(rb"[\[\]{}]", outside):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def convert(value: object, kind: type[T], what: str) -> T:
    """Check what JSON was decoded into, likewise, and raise likewise."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"{what}: {_in_words(error)}") from None


def _in_words(error: msgspec.ValidationError) -> str:
    """Expected `int`, got `str` - at `$.unet.channels` -> unet.channels: expected ..."""
    problem, _, place = str(error).partition(" - at `$")
    place = place.rstrip("`").lstrip(".")
    return printable((f"{place}: " if place else "") + problem[:1].lower() + problem[1:])


def printable(text: str) -> str:
    """Return a stranger's words on one line: what a terminal would obey is escaped, and what is
    longer than `SHOWN` characters is cut.
    """
    shown = text[:SHOWN]
    if not shown.isprintable():
        shown = repr(shown)[1:-1]
    return shown if len(text) <= SHOWN else f"{shown}... ({len(text)} characters)"
