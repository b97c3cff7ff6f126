"""Grey of more than 8 bits: where white is, and what is refused because nobody can tell."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nti.image import open_image


def image_of(values: list[float], mode: str) -> Image.Image:
    image = Image.new(mode, (len(values), 1))
    image.putdata(values)
    return image


def greys(image: Any) -> list[int]:
    return list(open_image(image).getchannel("G").tobytes())


def test_floats_to_1_become_the_nearest_8_bits(tmp_path: Path) -> None:
    image = image_of([0.0, 0.4 / 255, 0.6 / 255, 0.5, 1.0, 1.00005, -0.00005], "F")
    image.save(tmp_path / "x.tif")
    assert greys(tmp_path / "x.tif") == greys(image) == [0, 0, 1, 128, 255, 255, 0]


def test_floats_to_255_become_the_nearest_8_bits() -> None:
    assert greys(image_of([0.0, 0.4, 0.6, 1.4, 1.6, 254.4, 254.6, 255.0], "F")) == [
        *(0, 0, 1, 1, 2, 254, 255, 255)
    ]


def test_a_black_image_is_black() -> None:
    for mode in ("F", "I", "I;16"):
        assert greys(Image.new(mode, (3, 1), 0)) == [0, 0, 0]


@pytest.mark.parametrize(
    ("values", "mode", "message"),
    [
        ([0, 200], "I", r"from 0 to 200, expected 0 to 65535, which is white: if 255 is white"),
        ([0, 200], "I;16", r"from 0 to 200, expected 0 to 65535, which is white: if 255 is white"),
        ([0, 70000], "I", r"from 0 to 70000, expected 0 to 65535"),
        ([-5, 300], "I", r"from -5 to 300, expected 0 to 65535"),
        ([0.0, 1.5], "F", r"from 0 to 1\.5, expected 0 to 1 or 0 to 255, which is white: to cut"),
        ([-3.0, 300.0], "F", r"from -3 to 300, expected 0 to 1 or 0 to 255"),
        ([-1.0, 1.0], "F", r"from -1 to 1, expected"),
        ([0.5, float("nan")], "F", r"not finite"),
        ([float("inf"), 0.5], "F", r"not finite"),
    ],
)
def test_where_white_is_unclear_advice_is_given(
    tmp_path: Path, values: list[float], mode: str, message: str
) -> None:
    image = image_of(values, mode)
    image.save(tmp_path / "x.tif")
    for given, where in ((image, ""), (tmp_path / "x.tif", f"{tmp_path}/x.tif: ")):
        with pytest.raises(ValueError, match=rf"^{where}image: got values .*{message}") as error:
            open_image(given)
        assert "\n" not in str(error.value)


def test_the_advice_works() -> None:
    for mode in ("I", "I;16"):
        assert greys(image_of([0, 200], mode).convert("I").convert("L")) == [0, 200]
    assert greys(image_of([0.0, 0.8, 1.5], "F").point(lambda v: v * 255).convert("L")) == [
        *(0, 204, 255)
    ]
    assert greys(image_of([-3.0, 100.0, 300.0], "F").convert("L")) == [0, 100, 255]


def test_a_nan_far_down_is_found() -> None:
    values = np.full((1500, 1000), 0.5, np.float32)
    values[1400, 3] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        open_image(Image.fromarray(values))


def test_a_tall_image_is_converted_in_bands_that_meet() -> None:
    values = np.arange(3000 * 1000, dtype=np.uint32).reshape(3000, 1000) % 65536
    image = Image.fromarray(values.astype(np.uint16))
    expected = np.rint(values / 257.0).astype(np.uint8)
    assert open_image(image).getchannel("R").tobytes() == expected.tobytes()
