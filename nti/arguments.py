"""Arguments of public functions: checked, and brought to Python's own types.

A NumPy or PyTorch scalar counts as the number that it holds; True and False are no numbers. What
does not fit is a ValueError that says in one line what was got and what was expected.
"""

import math
from collections.abc import Iterable, Sequence
from ctypes import c_float
from numbers import Integral, Real
from typing import Any, TypeVar

__all__ = [
    "a_callable",
    "a_choice",
    "a_number",
    "a_text",
    "a_whole_number",
    "an_instance",
    "shown",
    "texts",
]

Called = TypeVar("Called")
Kind = TypeVar("Kind")

SHOWN = 100
"""Characters of a value that an error shows."""


def shown(value: object) -> str:
    """Return a value's `repr` on one line, cut where it is long."""
    line = " ".join(repr(value).split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}..."


def a_number(
    name: str, value: object, low: float = -math.inf, high: float = math.inf, why: str = ""
) -> float:
    """Return a finite number from `low` to `high`; `why` ends the error of one outside."""
    given = _own(value)
    number = math.nan
    if isinstance(given, Real) and not isinstance(given, bool):
        try:
            number = float(given)
        except OverflowError:  # of a whole number beyond float64
            number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name}: got {shown(value)}, expected a finite number")
    if not low <= number <= high:
        raise ValueError(f"{name}: got {shown(given)}, expected {_range(low, high)}{why}")
    return number


def a_whole_number(
    name: str, value: object, low: float = -math.inf, high: float = math.inf, why: str = ""
) -> int:
    """Return a whole number from `low` to `high`; `why` ends the error of one outside."""
    given = _own(value)
    if not isinstance(given, Integral) or isinstance(given, bool):
        raise ValueError(f"{name}: got {shown(value)}, expected a whole number")
    number = int(given)
    if not low <= number <= high:
        raise ValueError(f"{name}: got {shown(number)}, expected {_range(low, high)}{why}")
    return number


def a_choice(name: str, value: object, choices: Iterable[str]) -> str:
    """Return one of some names."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: got {shown(value)}, expected one of {', '.join(choices)}")
    return str(value)


def a_text(name: str, value: object) -> str:
    """Return a string that UTF-8 can write."""
    try:
        if isinstance(value, str):
            value.encode()
            return str(value)
    except UnicodeEncodeError:
        raise ValueError(f"{name}: got {shown(value)}, half a surrogate pair in it") from None
    raise ValueError(f"{name}: got {shown(value)}, expected a string")


def texts(name: str, values: object) -> tuple[str, ...]:
    """Return one string or a sequence of them as a tuple, which may be empty."""
    if isinstance(values, str):
        return (a_text(name, values),)
    if not isinstance(values, Sequence) or isinstance(values, bytes | bytearray):
        raise ValueError(f"{name}: got {shown(values)}, expected a string or a list of strings")
    return tuple(a_text(f"{name}[{i}]", each) for i, each in enumerate(values))


def a_callable(name: str, value: Called) -> Called:
    """Return what can be called, or None."""
    if value is not None and not callable(value):
        raise ValueError(f"{name}: got {shown(value)}, expected a function or None")
    return value


def an_instance(name: str, value: object, kind: type[Kind]) -> Kind:
    """Return an object of a class."""
    if not isinstance(value, kind):
        raise ValueError(f"{name}: got {shown(value)}, expected one of {kind.__qualname__}")
    return value


def _own(value: Any) -> object:
    """Return the number that an array or tensor without dimensions holds; all else as it is."""
    if getattr(value, "shape", None) != () or not hasattr(value, "item"):
        return value
    number = value.item()
    return _decimal(number) if isinstance(number, float) else number


def _decimal(number: float) -> float:
    """Return the shortest decimal that float32 rounds to a number: 0.7 of 50 steps is 35, not 34.

    A number that is not of float32 stays as it is.
    """
    near = (float(f"{number:.{digits}g}") for digits in range(6, 9))
    return next((x for x in near if c_float(x).value == number), number)


def _range(low: float, high: float) -> str:
    if math.isinf(high):
        return f"{low} or more"
    return f"{high} or less" if math.isinf(low) else f"{low} to {high}"
