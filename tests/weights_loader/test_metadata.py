"""JSON of strangers: its bounds, and what its errors say."""

import json
from typing import Any

import pytest
from nti.weights_loader.metadata import DEEPEST, LONGEST, convert, decode


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def test_brackets_in_strings_nest_nothing() -> None:
    value = {"a": "[" * 1000, 'b"\\"[': ["]", {"c": "\\"}]}
    assert decode(json.dumps(value), dict[str, Any], "x") == value
    assert decode(nested(DEEPEST), list[Any], "x") is not None


@pytest.mark.parametrize(
    "text",
    [nested(DEEPEST + 1), nested(100_000), "[" * 500, '{"a":' * 70 + "1" + "}" * 70],
    ids=["just", "very", "open", "objects"],
)
def test_deep_nesting_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="^x: got JSON nested more than 64 deep"):
        decode(text, Any, "x")  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "{", "nope", "{} 2", "NaN", '"\\ud800"', b"\xff", "\x00"])
def test_what_is_no_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError, match="^x: got text that is no JSON"):
        decode(text, dict[str, Any], "x")


def test_too_much_is_not_read() -> None:
    with pytest.raises(ValueError, match="expected 16777216 at most"):
        decode(b" " * (LONGEST + 1), dict[str, Any], "x")


def test_an_error_names_the_place_before_the_fault() -> None:
    with pytest.raises(ValueError, match=r"^x: \[...\]: expected `int`, got `str`$"):
        decode('{"a": "b"}', dict[str, int], "x")
    with pytest.raises(ValueError, match="^x: expected `int`, got `str`$"):
        convert("b", int, "x")


def test_a_byte_order_mark_is_skipped() -> None:
    assert decode(b"\xef\xbb\xbf{}", dict[str, Any], "x") == {}
