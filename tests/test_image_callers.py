"""What Python callers give as sizes, tensors and placements."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from nti.image import Placement, load_image, paste_back, to_pil

PICTURE = Image.effect_noise((40, 20), 90)


@pytest.mark.parametrize(
    "size", [16, np.int64(16), torch.tensor(16), (16, 16), [16, 16], (np.int32(16), 16)], ids=repr
)
def test_any_whole_number_is_a_size(size: object) -> None:
    assert torch.equal(load_image(PICTURE, size), load_image(PICTURE, 16))
    placement = Placement.create((40, 20), size, "crop")
    assert placement == Placement.create((40, 20), 16, "crop")
    assert type(placement.size[0]) is int


WRONG = [
    None, 2.5, -3, 0, float("nan"), "16", "", b"16", True, [], (), (1, 2, 3), {}, {16: 16},
    object(), (16, None), (16, 0), np.zeros(2), torch.zeros(2, 2), 10**400, [[]],
]  # fmt: skip

CALLS: dict[str, Callable[[object], object]] = {
    "size": lambda x: load_image(PICTURE, x),
    "fit": lambda x: load_image(PICTURE, 16, fit=x),
    "size of a placement": lambda x: Placement.create((40, 20), x, "crop"),
    "original of a placement": lambda x: Placement.create(x, 16, "crop"),
    "edited": lambda x: paste_back(x, PICTURE, Placement.create((40, 20), 16, "crop")),
    "original": lambda x: paste_back(PICTURE, x, Placement.create((40, 20), 16, "crop")),
    "placement": lambda x: paste_back(PICTURE, PICTURE, x),
    "tensor": lambda x: to_pil(x),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("value", WRONG, ids=range(len(WRONG)))
def test_what_is_none_is_an_error_of_one_line(
    value: object, call: Callable[[object], object]
) -> None:
    with pytest.raises(ValueError) as error:
        call(value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_an_edit_with_transparency_is_pasted_back_in_rgb() -> None:
    placement = Placement.create((40, 20), 16, "crop")
    edited = Image.new("RGBA", (16, 16), (0, 0, 255, 255))
    assert paste_back(edited, PICTURE, placement).getpixel((20, 10)) == (0, 0, 255)
