"""Small damage to bytes and to JSON, as chance or a stranger's hand does it.

The same `random.Random` makes the same damage.
"""

import copy
import string
from random import Random
from typing import Any

__all__ = ["mutate_bytes", "mutate_json"]

EXTREMES = (
    b"",
    b"\0" * 8,
    b"\xff" * 8,
    b"\xff" * 7 + b"\x7f",
    b"\x7f",
    b"{",
    b'"',
    b"\xed\xa0\x80",
)
"""Lengths that are none, signs, and half of a character."""

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 2**31 - 1, 2**63, -(2**63), 10**30,
    0.0, -0.5, 0.5, 1.5, 1e-300, 1e308, float("nan"), float("inf"), float("-inf"),
    "", "0", "a", "\0", "\x1b[2J", "\u2028",
    "\ud800", "x" * 10_000, [], {}, [[]], [0], [None] * 1000, {"": None},
)  # fmt: skip


def mutate_bytes(data: bytes, random: Random) -> bytes:
    """Return the bytes with one to three places damaged: changed, cut, doubled or filled in."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 3)):
        start = random.randrange(len(changed) + 1)
        end = min(start + random.choice((0, 1, 1, 2, 8, 64)), len(changed))
        kind = random.choice(("flip", "replace", "extreme", "delete", "double", "cut"))
        if kind == "flip" and start < len(changed):
            changed[start] ^= 1 << random.randrange(8)
        elif kind == "replace":
            changed[start:end] = random.randbytes(end - start)
        elif kind == "extreme":
            changed[start:end] = random.choice(EXTREMES)
        elif kind == "delete":
            del changed[start:end]
        elif kind == "double":
            changed[start:start] = changed[start:end] * random.choice((1, 1, 100))
        elif kind == "cut":
            del changed[start:]
    return bytes(changed)


def mutate_json(value: Any, random: Random) -> Any:
    """Return a JSON value with one to three parts damaged: another type, another number, missing,
    doubled, renamed or nested.

    The argument is not modified. NaN, infinities and lone surrogates may be in the result, which
    `json.dumps` writes; it nests no deeper than that can go.
    """
    changed = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        changed = _mutated(changed, random)
    return changed


def _mutated(value: Any, random: Random) -> Any:
    if isinstance(value, dict) and value and random.random() < 0.9:
        key = random.choice(sorted(value))
        kind = random.random()
        if kind < 0.1:
            del value[key]
        elif kind < 0.2:
            name = "".join(random.choices(string.ascii_lowercase, k=4))
            value[random.choice((name, key.upper(), f"{key}\n", ""))] = value[key]
        elif kind < 0.25:
            value[key] = value[random.choice(sorted(value))]
        else:
            value[key] = _mutated(value[key], random)
        return value
    if isinstance(value, list) and value and random.random() < 0.7:
        at = random.randrange(len(value))
        kind = random.random()
        if kind < 0.15:
            del value[at]
        elif kind < 0.3:
            value[at:at] = [value[at]] * random.choice((1, 1, 300))
        else:
            value[at] = _mutated(value[at], random)
        return value
    return _replaced(value, random)


def _replaced(value: Any, random: Random) -> Any:
    kind = random.random()
    if isinstance(value, int | float) and kind < 0.4:
        return random.choice((value + 1, value - 1, -value, value * 2, value * 10**6, value / 2))
    if isinstance(value, str) and kind < 0.4:
        return mutate_bytes(value.encode("utf-8", "replace"), random).decode("utf-8", "replace")
    if kind < 0.5:
        return [value] if random.random() < 0.5 else {"a": value}
    if kind < 0.55:
        nested: Any = value
        for _ in range(random.choice((3, 200))):
            nested = [nested]
        return nested
    if kind < 0.6:
        return str(value)
    return copy.deepcopy(random.choice(VALUES))
