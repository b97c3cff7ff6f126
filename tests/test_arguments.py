"""What the checker of arguments takes, and what it says of the rest."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from nti.arguments import a_choice, a_number, a_text, a_whole_number, an_instance, shown, texts

SCALARS = [
    2, np.int64(2), np.uint8(2), np.array(2), torch.tensor(2), torch.tensor(2, dtype=torch.uint8)
]  # fmt: skip


@pytest.mark.parametrize("value", SCALARS, ids=repr)
def test_any_whole_scalar_becomes_pythons_own(value: object) -> None:
    for number, kind in ((a_whole_number("n", value), int), (a_number("n", value), float)):
        assert number == 2 and type(number) is kind


@pytest.mark.parametrize(
    "value", [0.5, np.float32(0.5), np.float16(0.5), torch.tensor(0.5), Fraction(1, 2)], ids=repr
)
def test_any_real_scalar_becomes_pythons_own(value: object) -> None:
    number = a_number("x", value, 0, 1)
    assert number == 0.5 and type(number) is float
    with pytest.raises(ValueError, match="x: got .*, expected a whole number"):
        a_whole_number("x", value)


WRONG = [
    None, "2", b"2", [2], (2,), {}, {2: 2}, True, np.True_, torch.tensor(True), 2j, object(),
    np.ones(1), torch.ones(2, 2), math.nan, math.inf, np.float32("nan"), torch.tensor(torch.inf),
]  # fmt: skip


@pytest.mark.parametrize("value", WRONG, ids=lambda value: repr(value).partition(" at 0x")[0])
def test_what_is_no_number_is_named_in_one_line(value: object) -> None:
    for check, kind in ((a_number, "finite"), (a_whole_number, "whole")):
        with pytest.raises(ValueError, match=rf"^n: got .*, expected a {kind} number$") as error:
            check("n", value)
        assert "\n" not in str(error.value)


def test_a_number_beyond_float64_is_not_finite() -> None:
    with pytest.raises(ValueError, match="expected a finite number"):
        a_number("n", 10**400)
    assert a_whole_number("n", 10**400) == 10**400


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: a_number("x", 1.5, 0, 1), "x: got 1.5, expected 0 to 1"),
        (lambda: a_number("x", -1, 0), "x: got -1, expected 0 or more"),
        (lambda: a_number("x", 3, high=2), "x: got 3, expected 2 or less"),
        (lambda: a_whole_number("n", 0, 1, 9, ", a step"), "n: got 0, expected 1 to 9, a step"),
        (lambda: a_choice("m", "c", ("a", "b")), "m: got 'c', expected one of a, b"),
        (lambda: a_choice("m", ["a"], ("a", "b")), "m: got ['a'], expected one of a, b"),
        (lambda: a_text("t", b"cat"), "t: got b'cat', expected a string"),
        (lambda: a_text("t", "\ud800"), r"t: got '\ud800', half a surrogate pair in it"),
        (lambda: texts("t", 3), "t: got 3, expected a string or a list of strings"),
        (lambda: texts("t", b"cat"), "t: got b'cat', expected a string or a list of strings"),
        (lambda: texts("t", ["a", None]), "t[1]: got None, expected a string"),
        (lambda: an_instance("m", 3, torch.Tensor), "m: got 3, expected one of Tensor"),
    ],
)
def test_what_does_not_fit_is_an_error_that_says_so(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value) == message


def test_strings_are_taken() -> None:
    assert texts("t", "a cat") == ("a cat",)
    assert texts("t", ["a cat", np.str_("a dog")]) == ("a cat", "a dog")
    assert a_choice("m", "b", ("a", "b")) == "b"


def test_a_long_value_is_cut_and_its_lines_joined() -> None:
    assert shown(np.eye(2)) == "array([[1., 0.], [0., 1.]])"
    assert len(shown("x" * 10**6)) < 110


@pytest.mark.parametrize("value", [0.1, 0.7, 0.8, 1e-4, 7.5, 1 / 3, 3.4028235e38, 65504.0])
def test_a_decimal_in_float32_is_the_decimal_that_was_written(value: float) -> None:
    for scalar in (np.float32(value), torch.tensor(value)):
        number = a_number("x", scalar)
        assert np.float32(number) == np.float32(value), "nothing is lost"
        assert len(repr(number)) <= len(repr(float(np.float32(value))))
    assert a_number("x", np.float64(value)) == a_number("x", value) == value
    assert int(a_number("x", np.float32(0.7)) * 50) == 35
