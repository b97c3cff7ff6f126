"""Masks go where their images go."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nti.image import Placement, fit_image, load_mask, paste_back

WHITE = Image.new("L", (8, 6), 0)
WHITE.paste(255, (2, 1, 5, 4))
EXPECTED = torch.zeros(1, 1, 6, 8, dtype=torch.bool)
EXPECTED[..., 1:4, 2:5] = True


@pytest.mark.parametrize(
    "mask",
    [
        WHITE, WHITE.convert("RGB"), WHITE.convert("1"), np.asarray(WHITE),
        EXPECTED, EXPECTED[0], EXPECTED[0, 0], EXPECTED.float(), EXPECTED.half() * 0.5,
        EXPECTED.int(), EXPECTED[0, 0].numpy(),
    ],
    ids=[
        "L", "RGB", "1", "array", "bool", "bool-3", "bool-2", "float", "half", "integers",
        "bool-array",
    ],
)  # fmt: skip
def test_any_kind_of_mask_is_read(mask: object) -> None:
    found = load_mask(mask, (8, 6), None)
    assert found.dtype == torch.bool and torch.equal(found, EXPECTED)


def test_a_file_is_read(tmp_path: Path) -> None:
    WHITE.save(tmp_path / "mask.png")
    assert torch.equal(load_mask(tmp_path / "mask.png", (8, 6), None), EXPECTED)


def test_half_white_is_white() -> None:
    for value, white in ((127, False), (128, True)):
        assert load_mask(Image.new("L", (4, 4), value), (4, 4), None).all() == white
    for value, white in ((0.499, False), (0.5, True)):
        assert load_mask(torch.full((4, 4), value), (4, 4), None).all() == white


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_a_mask_goes_where_its_image_goes(fit: str) -> None:
    picture = Image.new("RGB", (100, 60), "black")
    picture.paste("white", (40, 10, 70, 50))
    placement = Placement.create(picture.size, (64, 32), fit)
    expected = fit_image(picture, placement)[:, :1] >= 0
    found = load_mask(picture.convert("L"), (64, 32), placement)
    assert found.any() and not found.all() and torch.equal(found, expected)


def test_a_mask_may_have_the_size_that_the_model_gets() -> None:
    placement = Placement.create((80, 60), (8, 6), "crop")
    assert torch.equal(load_mask(WHITE, (8, 6), placement), EXPECTED)


@pytest.mark.parametrize(
    ("mask", "placement", "message"),
    [
        (WHITE.resize((6, 8)), None, "mask: got 6x8 pixels, expected 8x6, as its image has"),
        (
            WHITE.resize((9, 6)),
            Placement.create((80, 60), (8, 6), "crop"),
            "got 9x6 pixels, expected 80x60 or 8x6",
        ),
        (EXPECTED.expand(2, -1, -1, -1), None, r"got a tensor \(2, 1, 6, 8\)"),
        (EXPECTED.mT, None, r"got a tensor \(1, 1, 8, 6\) .* 6 x 8"),
        (EXPECTED.float() * 255, None, r"from 0 to 255, expected \[0, 1\]: scale"),
        (EXPECTED.float() * torch.nan, None, "from nan to nan"),
        ("none.png", None, "none.png: no such file"),
        (3, None, "mask: got 3"),
        (EXPECTED[0, 0].to_sparse(), None, "mask: got a tensor"),
        (np.zeros((0, 5), dtype=bool), None, "mask: "),
    ],
    ids=["size", "original", "two", "turned", "bytes", "nan", "file", "number", "sparse", "empty"],
)
def test_what_is_no_mask_of_the_image_is_an_error(
    mask: object, placement: Placement | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load_mask(mask, (8, 6), placement)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_what_is_pasted_back_shows_inside_the_mask_alone(fit: str) -> None:
    original = Image.effect_noise((100, 60), 90).convert("RGB")
    placement = Placement.create(original.size, (64, 32), fit)
    edited = Image.new("RGB", (64, 32), "red")
    whole = Image.new("L", original.size)
    whole.paste(255, (41, 13, 72, 47))
    back = np.asarray(paste_back(edited, original, placement, mask=whole))
    inside = np.asarray(whole) > 0
    assert (back[inside] == (255, 0, 0)).all()
    assert (back[~inside] == np.asarray(original)[~inside]).all()
    fitted = torch.zeros(32, 64, dtype=torch.bool)
    fitted[8:24, 16:48] = True
    coarse = np.asarray(paste_back(edited, original, placement, mask=fitted))
    changed = (coarse != np.asarray(original)).any(axis=-1)
    left, top, right, bottom = placement.taken
    assert changed[top:bottom, left:right].any() and not changed.all()
    picture = Image.fromarray(changed.astype(np.uint8) * 255)
    assert torch.equal(load_mask(picture, (64, 32), placement)[0, 0], fitted)


def test_a_mask_of_another_size_is_not_pasted() -> None:
    original = Image.new("RGB", (100, 60))
    placement = Placement.create(original.size, (64, 32), "crop")
    edited = Image.new("RGB", (64, 32))
    with pytest.raises(ValueError, match="mask: got 30x30 pixels, expected 100x60 or 64x32"):
        paste_back(edited, original, placement, mask=Image.new("L", (30, 30)))
