"""The text of options and of tables' cells, read as sizes, windows, factors and rules.

Each raises ValueError for text that it cannot read; the message begins with the name it was given.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nti.editing.control_schedule import CrossWindow, Window
    from nti.editing.local_blend import BlendWords
    from nti.inversion.invert import Size
    from nti.inversion.null_text import Rule

__all__ = [
    "parse_assignment",
    "parse_blend",
    "parse_cross_window",
    "parse_rule",
    "parse_size",
    "parse_window",
]


def parse_size(text: str | None, option: str = "--size") -> "Size | None":
    """Read `512`, `768x512` or `native`; None stays None."""
    if text is None:
        return None
    if text == "native":
        return "native"
    if not re.fullmatch(r"\d+(x\d+)?", text):
        raise ValueError(f"{option}: got {text!r}, expected pixels, WIDTHxHEIGHT or native")
    width, _, height = text.partition("x")
    return (int(width), int(height or width))


def parse_window(text: str, option: str) -> "Window":
    """Read `0.8` or `0.1:0.8`."""
    start, separator, end = text.partition(":")
    return (_number(start, option), _number(end, option)) if separator else _number(text, option)


def parse_cross_window(values: Sequence[str], option: str = "--cross") -> "CrossWindow":
    """Read one window for all words, or `word=window`, any number of them."""
    words: dict[str, Window] = {}
    default: Window = 0.8
    for value in values:
        word, separator, window = value.rpartition("=")
        if separator:
            words[word] = parse_window(window, option)
        else:
            default = parse_window(value, option)
    return {"default_": default, **words} if words else default


def parse_assignment(text: str, option: str) -> tuple[str, float]:
    """Read `word=2`."""
    word, separator, value = text.rpartition("=")
    if not separator or not word:
        raise ValueError(f"{option}: got {text!r}, expected WORD=NUMBER, e.g. tiger=2")
    return word, _number(value, option)


def parse_blend(text: str | None) -> "BlendWords | None":
    """Read `cat:tiger`, or `cat` for both prompts; None stays None."""
    source, separator, edited = (text or "").partition(":")
    return (source, edited) if separator else (text or None)


def parse_rule(text: str, published: "Rule", option: str) -> "Rule":
    """Read `published`, or a number that holds for all timesteps."""
    if text == "published":
        return published
    value = _number(text, option)
    return lambda index, steps: value


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{option}: got {text!r}, expected a number") from None
