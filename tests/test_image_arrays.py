"""NumPy arrays as images."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nti.image import FITS, Placement, load_image, open_image, paste_back

PICTURE = np.random.default_rng(0).integers(256, size=(24, 40, 3), dtype=np.uint8)
PICTURE[..., 0] = (np.arange(24 * 40) % 256).reshape(24, 40)  # every value


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(PICTURE, id="uint8-H-W-3"),
        pytest.param(PICTURE[..., 0], id="uint8-H-W"),
        pytest.param(np.dstack([PICTURE, PICTURE[..., 0]]), id="uint8-H-W-4"),
        pytest.param(PICTURE[::-1, 5:, ::-1], id="uint8-strided"),
        pytest.param(np.asfortranarray(PICTURE), id="uint8-fortran"),
    ],
)
def test_an_array_of_bytes_is_the_image_that_pillow_makes_of_it(array: np.ndarray) -> None:
    before = array.copy()
    expected = Image.fromarray(array)
    assert open_image(array).tobytes() == open_image(expected).tobytes()
    for fit in FITS:
        loaded = load_image(array, (16, 32), fit=fit)
        assert torch.equal(loaded, load_image(expected, (16, 32), fit=fit))
    assert np.array_equal(array, before)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", ["H-W-3", "H-W", "H-W-4"])
def test_an_array_of_floats_is_rounded_to_the_nearest_8_bits(dtype: type, shape: str) -> None:
    if shape == "H-W-3":
        pixels = PICTURE
    elif shape == "H-W":
        pixels = PICTURE[..., 0]
    else:
        pixels = np.dstack([PICTURE, PICTURE[..., 0]])
    for shift in (0.0, 0.4, -0.4):
        if dtype == np.float16 and shift:
            continue  # its step near 1 is a quarter of a level
        floats = np.clip((pixels + shift) / 255, 0, 1).astype(dtype)
        assert open_image(floats).tobytes() == open_image(pixels).tobytes()


def test_an_array_that_resizing_took_a_rounding_error_past_1_is_taken() -> None:
    assert open_image(np.full((4, 4), 1.00001)).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(np.full((4, 4), -0.00001)).getpixel((0, 0)) == (0, 0, 0)


def test_an_edit_is_pasted_back_onto_an_array() -> None:
    placement = Placement.create((40, 24), (16, 16), "crop")
    edited = Image.new("RGB", (16, 16), "blue")
    back = paste_back(edited, PICTURE, placement)
    assert back.tobytes() == paste_back(edited, Image.fromarray(PICTURE), placement).tobytes()
    assert back.size == (40, 24)


FLOATS = PICTURE / 255
HOLED = np.where(np.arange(3) == 1, np.nan, FLOATS)


@pytest.mark.parametrize(
    ("array", "message", "advised"),
    [
        pytest.param(
            PICTURE.transpose(2, 0, 1), r"got an array \(3, 24, 40\) of uint8, expected \(H, W, 3\)"
            r".*: give array\.transpose\(1, 2, 0\)", lambda a: a.transpose(1, 2, 0), id="C-H-W",
        ),
        pytest.param(
            FLOATS.transpose(2, 0, 1), r"of float64.*: give array\.transpose\(1, 2, 0\)",
            lambda a: a.transpose(1, 2, 0), id="C-H-W-floats",
        ),
        pytest.param(
            PICTURE[None], r"\(1, 24, 40, 3\).*: give array\[0\]", lambda a: a[0], id="1-H-W-3"
        ),
        pytest.param(
            PICTURE[None, ..., 0], r"\(1, 24, 40\).*: give array\[0\]", lambda a: a[0], id="1-H-W"
        ),
        pytest.param(
            PICTURE[..., :1], r"\(24, 40, 1\).*: give array\[\.\.\., 0\]", lambda a: a[..., 0],
            id="H-W-1",
        ),
        pytest.param(
            PICTURE.astype(np.uint16) * 257, "of uint16.*: give array / 255, or array / 65535 where"
            " 65535 is white", lambda a: a / 65535, id="uint16",
        ),
        pytest.param(
            PICTURE.astype(np.int64), "of int64.*: give array / 255", lambda a: a / 255, id="int64"
        ),
        pytest.param(
            PICTURE > 99, r"of bool.*: give array\.astype\('float32'\)",
            lambda a: a.astype("float32"), id="bool",
        ),
        pytest.param(
            FLOATS.astype(">f4"), r"of >f4.*: give array\.astype\('float32'\)",
            lambda a: a.astype("float32"), id="big-endian",
        ),
        pytest.param(
            FLOATS.astype(np.longdouble), r"of float128.*: give array\.astype\('float32'\)",
            lambda a: a.astype("float32"), id="longdouble",
        ),
        pytest.param(
            FLOATS * 2 - 1, r"values from -1 to 1, expected \[0, 1\]: if -1 is black, give"
            r" \(array \+ 1\) / 2, or a tensor \(3, H, W\), which is taken as is; if they",
            lambda a: (a + 1) / 2, id="-1-to-1",
        ),
        pytest.param(
            FLOATS * 2 - 1, r"a tensor \(3, H, W\)",
            lambda a: torch.from_numpy(a).permute(2, 0, 1), id="-1-to-1-as-tensor",
        ),
        pytest.param(
            PICTURE.astype(float), r"values from 0 to 255, expected \[0, 1\]: if 255 is white,"
            r" give array / 255; if they overshoot, array\.clip", lambda a: a / 255,
            id="floats-to-255",
        ),
        pytest.param(
            FLOATS * 1.1 - 0.05, r"values from -0\.05 to 1\.05, .*array\.clip\(0, 1\)",
            lambda a: a.clip(0, 1), id="overshoot",
        ),
        pytest.param(
            FLOATS * 3 - 1, r"values from -1 to 2, expected \[0, 1\]: scale them, or give array",
            lambda a: a.clip(0, 1), id="range",
        ),
        pytest.param(
            FLOATS * 1000, r"values from 0 to 1000, expected \[0, 1\]: scale them, or give array",
            lambda a: a / 1000, id="range-above",
        ),
        pytest.param(
            HOLED, r"values that are not finite, expected \[0, 1\]: replace them",
            lambda a: np.where(np.isfinite(a), a, 0), id="nan",
        ),
        pytest.param(
            np.where(np.isnan(HOLED), -np.inf, HOLED), "values that are not finite",
            lambda a: np.where(np.isfinite(a), a, 0), id="infinity",
        ),
        pytest.param(np.zeros((8, 8, 2), np.uint8), r"\(8, 8, 2\) of uint8", None, id="2-channels"),
        pytest.param(np.zeros((0, 8, 3), np.uint8), r"\(0, 8, 3\) of uint8", None, id="empty"),
        pytest.param(
            np.zeros((8, 0)), r"\(8, 0\) of float64, .*floating point in \[0, 1\]$", None,
            id="empty-floats",
        ),
        pytest.param(np.zeros(8, np.uint8), r"\(8,\) of uint8, expected", None, id="1-dimension"),
        pytest.param(np.uint8(3), r"\(\) of uint8, expected", None, id="scalar"),
        pytest.param(np.zeros((8, 8), complex), "of complex128, expected", None, id="complex"),
        pytest.param(np.full((8, 8), "x.png"), "of <U5, expected", None, id="strings"),
    ],
)  # fmt: skip
def test_an_array_that_is_no_image_is_refused_with_advice_that_works(
    array: Any, message: str, advised: Callable[[Any], Any] | None
) -> None:
    for refuse in (open_image, lambda a: load_image(a, 8)):
        with pytest.raises(ValueError, match=message) as error:
            refuse(array)
        assert str(error.value).startswith("image: got ")
    if advised:
        assert load_image(advised(array), 8).shape[:2] == (1, 3)
