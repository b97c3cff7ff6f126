from pathlib import Path

import pytest
import torch
from PIL import Image

from nti.image import contact_sheet, heat_image, load_image, to_pil

RED, BLUE = (255, 0, 0), (0, 0, 255)


def two_halves(width: int, height: int) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def test_a_picture_goes_to_a_tensor_and_back(tmp_path: Path) -> None:
    noise = Image.effect_noise((32, 32), 80).convert("RGB")
    noise.save(tmp_path / "x.png")
    tensor = load_image(tmp_path / "x.png", 32)
    assert tensor.shape == (1, 3, 32, 32) and tensor.dtype == torch.float32
    assert tensor.min() >= -1 and tensor.max() <= 1
    assert to_pil(tensor)[0].tobytes() == noise.tobytes()


def test_black_is_minus_1_and_white_1() -> None:
    assert (load_image(Image.new("RGB", (8, 8), "black"), 8) == -1).all()
    assert (load_image(Image.new("RGB", (8, 8), "white"), 8) == 1).all()


def test_the_middle_square_is_kept() -> None:
    tensor = load_image(two_halves(64, 32), 32)
    assert tensor[0, :, 0, 0].tolist() == [1, -1, -1]
    assert tensor[0, :, 0, -1].tolist() == [-1, -1, 1]


def test_a_rotated_photograph_is_turned_upright(tmp_path: Path) -> None:
    image = two_halves(32, 32)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show it
    image.save(tmp_path / "x.jpg", exif=exif, quality=95, subsampling=0)
    tensor = load_image(tmp_path / "x.jpg", 32)
    assert tensor[0, 0, 2].mean() > 0.9 and tensor[0, 2, -3].mean() > 0.9


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA", "RGBA", "I;16", "I", "F"])
def test_any_mode_becomes_rgb(mode: str) -> None:
    if mode == "I;16":
        image = Image.new("I;16", (8, 8), 65535)
    elif mode == "I":
        image = Image.new("I", (8, 8), 65535)
    elif mode == "F":
        image = Image.new("F", (8, 8), 255.0)
    else:
        image = Image.new("RGB", (8, 8), "white").convert(mode)
    assert load_image(image, 8).min() > 0.98


def test_transparency_is_laid_on_white() -> None:
    assert (load_image(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), 8) == 1).all()


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(1, 4, 8, 8), r"got a tensor \(1, 4, 8, 8\)"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), "torch.uint8"),
        (torch.full((3, 8, 8), 200.0), r"got values from 200 to 200, expected \[-1, 1\]"),
        (torch.full((3, 8, 8), torch.nan), r"got values from nan"),
    ],
    ids=["channels", "bytes", "range", "nan"],
)
def test_a_tensor_that_is_no_image_is_refused(tensor: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_image(tensor, 8)


def test_a_file_that_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("no picture")
    with pytest.raises(ValueError, match="not an image that can be read"):
        load_image(tmp_path / "x.png", 8)
    with pytest.raises(ValueError, match="no such file"):
        load_image(tmp_path / "y.png", 8)


def test_the_sheet_shows_every_image_and_grows_with_its_labels() -> None:
    red, blue = Image.new("RGB", (9, 9), RED), Image.new("RGB", (9, 9), BLUE)
    sheet = contact_sheet([[(red, "one"), (blue, "two")], [(blue, "three")]], cell=64)
    colours = [sheet.getpixel((10 + 32, 10 + 32)), sheet.getpixel((84 + 32, 10 + 32))]
    assert colours == [RED, BLUE]
    longer = contact_sheet([[(red, "many words that have to wrap in a cell")]], cell=64)
    assert longer.height > contact_sheet([[(red, "one")]], cell=64).height


def test_a_heat_map_is_white_at_its_peak_and_black_at_zero() -> None:
    image = heat_image(torch.tensor([[0.0, 2.0]]), 8)
    assert image.getpixel((0, 0)) == (0, 0, 0) and image.getpixel((7, 0)) == (255, 255, 255)
