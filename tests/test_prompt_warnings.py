"""What a prompt is warned of where it is encoded."""

import warnings

import pytest

import nti
from nti import StableDiffusion


def told(model: StableDiffusion, *prompts: str) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        model.encode_text(list(prompts))
    return [str(warning.message) for warning in found]


@pytest.mark.parametrize(
    ("prompt", "weights"),
    [
        ("a (cat:1.3) on a mat", ["(cat:1.3)"]),
        ("a ( Big CAT : 1.3 ), a (dog:.5)", ["( big cat : 1.3 )", "(dog:.5)"]),
        ("a ((cat))", ["((cat))"]),
        ("a (((cat))) here", ["((cat))"]),
        ("a [cat] on a mat", ["[cat]"]),
        ("a [cat:dog:0.5]", ["[cat:dog:0.5]"]),
        ("a ((cat:1.2))", ["((cat:1.2))"]),
        ("a purple++ cat", ["purple++"]),
        ("a (big cat)++ and a (dog)1.3", ["(big cat)++", "(dog)1.3"]),
    ],
)
def test_weights_of_other_programs_are_told_of(
    model: StableDiffusion, prompt: str, weights: list[str]
) -> None:
    (message,) = told(model, prompt)
    listed = ", ".join(map(repr, weights))
    assert message.startswith(f"{listed} in a prompt is plain text here, signs included: write")
    assert "by reweight, such as {'cat': 1.3} (--reweight cat=1.3)" in message


@pytest.mark.parametrize(
    "prompt",
    [
        "a cat (sitting)", "a cat (16:9)", "a clock (at 10:30)", "a cat: 1.3", "cat :) ((:", "[1]",
        "a (big) [ ] cat", "psalm (23:1)", "",
        "a C++ book", "a well- known cat", "a cat (sitting), 1.3", "(cat)",
    ],
)  # fmt: skip
def test_innocent_signs_are_not(model: StableDiffusion, prompt: str) -> None:
    assert told(model, prompt) == []


def test_each_prompt_is_told_of_once(model: StableDiffusion) -> None:
    assert len(told(model, "a [cat]", "a [cat]", "a [dog]", "a cat")) == 2
    long = "[cat] " + "cat " * 80
    assert len(told(model, long)) == 2, "that it is cut, and of the weight"


def test_generating_tells_too(model: StableDiffusion) -> None:
    with pytest.warns(UserWarning, match="plain text here") as found:
        nti.generate(model, "a (cat:1.3)", steps=1)
    assert len(found) == 1


@pytest.mark.parametrize("prompts", ["a cat", [None], [3], 3, None, b"cat", {"a": 1}])
def test_what_is_no_list_of_strings_is_refused(model: StableDiffusion, prompts: object) -> None:
    with pytest.raises(ValueError, match=r"^prompts(\[0\])?: got .*, expected a"):
        model.encode_text(prompts)
