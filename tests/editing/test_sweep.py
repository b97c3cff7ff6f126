from typing import Any

import numpy as np
import pytest
from PIL import Image

from nti import Inversion, StableDiffusion, edit, sweep

TIGER = "a tiger sitting next to a mirror"
SIDE, GAP, TOP = 64, 10, 44


def cells(sheet: Image.Image, count: int) -> list[np.ndarray]:
    """The pictures of a sheet whose cells have the pictures' size, so that none is scaled."""
    lefts = [GAP + i * (SIDE + GAP) for i in range(count)]
    return [np.asarray(sheet.crop((x, TOP, x + SIDE, TOP + SIDE)), int) for x in lefts]


@pytest.mark.parametrize(
    ("over", "values", "batches"),
    [
        ("reweight", [-2.0, 1.0, 8.0], [3]),
        ("cross_replace", [0.0, (0.2, 0.6), 1.0], [3]),
        ("self_replace", [0.0, 1.0], [2]),
        ("guidance_scale", [1, 6.0], [1, 1]),
    ],
    ids=["reweight", "cross", "self", "guidance"],
)
def test_each_picture_is_the_edit_at_its_value(
    model: StableDiffusion, inversion: Inversion, monkeypatch: pytest.MonkeyPatch, over: str,
    values: list[Any], batches: list[int],
) -> None:  # fmt: skip
    import nti.editing.sweep as module

    found: list[int] = []
    plain = module.edit_latents

    def counted(model: Any, inversion: Any, plan: Any, **settings: Any) -> Any:
        found.append(len(plan.prompts))
        return plain(model, inversion, plan, **settings)

    monkeypatch.setattr(module, "edit_latents", counted)
    word = "tiger" if over == "reweight" else None
    sheet = sweep(
        model, inversion, TIGER, over=over, values=values, word=word, cell=SIDE,
        cross_replace=0.6, reweight={"mirror": 3.0},
    )  # fmt: skip
    assert found == batches
    pictures = cells(sheet, 1 + len(values))
    for value, picture in zip(values, pictures[1:], strict=True):
        settings: dict[str, Any] = {"cross_replace": 0.6, "reweight": {"mirror": 3.0}}
        settings |= {"reweight": {"mirror": 3.0, "tiger": value}} if word else {over: value}
        result = edit(model, inversion, TIGER, **settings)
        assert abs(picture - np.asarray(result.images[0], int)).max() <= 1
        assert np.array_equal(pictures[0], np.asarray(result.source, int))
    assert abs(pictures[1] - pictures[-1]).max() > 5


def test_batches_are_as_large_as_asked_and_steps_are_counted_through(
    model: StableDiffusion, inversion: Inversion
) -> None:
    heard: list[tuple[int, int]] = []
    settings: dict[str, Any] = {"over": "cross_replace", "values": [0.2, 0.4, 0.6], "cell": SIDE}
    sheet = sweep(
        model, inversion, TIGER, **settings, at_once=2,
        callback=lambda done, total: heard.append((done, total)),
    )  # fmt: skip
    assert heard == [(i + 1, 20) for i in range(20)]
    whole = sweep(model, inversion, TIGER, **settings)
    for ours, theirs in zip(cells(sheet, 4), cells(whole, 4), strict=True):
        assert abs(ours - theirs).max() <= 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"over": "mode"}, "over: got 'mode', expected one of reweight, cross_replace, self_"),
        ({"over": "reweight"}, "word: got none, expected the word of the edited prompt"),
        ({"over": "self_replace", "word": "cat"}, "word: got 'cat', expected none to go over"),
        ({"values": []}, r"values: got \[\], expected one number or more"),
        ({"values": "0.5"}, "values: got '0.5'"),
        ({"values": 0.5}, "values: got 0.5"),
        ({"values": [0.5, 2.0]}, "cross_replace: got 2.0, expected a number in"),
        ({"over": "reweight", "word": "dog"}, "'dog' is not in the prompt"),
        ({"over": "reweight", "word": "tiger", "values": [(0, 1)]}, r"reweight\['tiger'\]: got"),
        ({"at_once": 0}, "at_once: got 0, expected 1 or more"),
        ({"cell": 0}, "cell: got 0"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_settings_that_do_not_fit_are_refused(
    model: StableDiffusion, inversion: Inversion, settings: dict[str, Any], message: str
) -> None:
    given: dict[str, Any] = {"over": "cross_replace", "values": [0.5], **settings}
    with pytest.raises(ValueError, match=message):
        sweep(model, inversion, TIGER, **given)
