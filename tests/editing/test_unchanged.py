"""An edit that changes nothing that can be seen says so, and what to try."""

import warnings

import pytest
import torch

import nti
from nti import EditPlan, Inversion, StableDiffusion
from nti.editing.unchanged import warn_of_unchanged

SOURCE, GREEN = "a purple circle on snow", "a green circle on snow"


@pytest.fixture(scope="module")
def made(embedded: StableDiffusion) -> Inversion:
    return nti.generate(embedded, SOURCE, steps=5)


SUBTRACTED = {"blend": "circle", "subtract": "circle", "blend_threshold": 0.0}


@pytest.mark.parametrize(
    ("prompt", "settings", "advice"),
    [
        (GREEN, SUBTRACTED, "the regions of its blend words are empty, or subtracted: choose"),
        ("A purple  circle on snow", {}, "its prompt is the source's: change a word, or weigh"),
    ],
    ids=["mask", "prompt"],
)
def test_an_edit_that_changes_nothing_says_why(
    embedded: StableDiffusion, made: Inversion, prompt: str, settings: dict[str, object],
    advice: str,
) -> None:  # fmt: skip
    message = rf"edit: '{prompt}' changes the picture by \S+ of 255 grey levels at most: {advice}"
    with pytest.warns(UserWarning, match=message) as told:
        nti.edit(embedded, made, prompt, **settings)
    assert len(told) == 1


def test_an_edit_that_can_be_seen_says_nothing(embedded: StableDiffusion, made: Inversion) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nti.edit(embedded, made, GREEN)
        nti.edit(embedded, made, SOURCE, reweight={"purple": -2.0})


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"cross_replace": 1.0, "self_replace": 1.0}, "attention is the source's at every step"),
        ({}, "lower cross_replace, self_replace or start, or weigh a word by"),
    ],
    ids=["windows", "otherwise"],
)
def test_each_edit_of_a_batch_is_told_of_by_itself(
    embedded: StableDiffusion, settings: dict[str, object], advice: str
) -> None:
    prompts = [GREEN, "a red circle on snow"]
    plan = EditPlan.create(embedded.tokenizer, SOURCE, prompts, steps=5, **settings)
    pixels = torch.zeros(3, 3, 8, 8)
    pixels[1, 1, 2, 3] = 1.5 / 127.5
    pixels[2, 0, 5, 5] = 2.5 / 127.5
    with pytest.warns(UserWarning, match=f"{GREEN}' .* by 1.5 of 255 .*{advice}") as told:
        warn_of_unchanged(plan, pixels, None)
    assert len(told) == 1
