from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nti.image import (
    FITS,
    Placement,
    fit_image,
    load_image,
    open_image,
    paste_back,
    to_pil,
)

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


@pytest.mark.parametrize(
    "name",
    ["L.png", "L.jpg", "L.tif", "I;16.png", "I;16.tif", "F.tif", "1.png", "P.png", "LA.png"]
    + ["RGB.jpg", "RGB.tif", "RGB.webp", "RGBA.png", "CMYK.jpg"],
)
def test_a_rotated_file_of_any_mode_is_turned_upright(tmp_path: Path, name: str) -> None:
    mode = name.split(".")[0]
    image = Image.new("RGB", (40, 20), "white")
    image.paste("black", (0, 0, 20, 20))
    if mode == "I;16":
        grey = [value * 257 for value in image.convert("L").tobytes()]
        image = Image.new("I;16", image.size)
        image.putdata(grey)
    else:
        image = image.convert("L" if mode == "F" else mode).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show it
    image.save(tmp_path / name, exif=exif)
    upright = open_image(tmp_path / name)
    assert upright.mode == "RGB" and upright.size == (20, 40)
    assert max(upright.getpixel((10, 5))) < 9 and min(upright.getpixel((10, 35))) > 246


def every_16_bits() -> Image.Image:
    """All 65,536 values of 16-bit grey."""
    image = Image.new("I;16", (256, 256))
    image.putdata(range(65536))
    return image


@pytest.mark.parametrize("name", ["I;16", "I;16B", "I", "png", "tif"])
def test_16_bits_become_the_nearest_8(tmp_path: Path, name: str) -> None:
    image = every_16_bits()
    if name.startswith("I"):
        opened = open_image(image if name == "I;16" else image.convert("I").convert(name))
    else:
        image.save(tmp_path / f"x.{name}")
        with Image.open(tmp_path / f"x.{name}") as saved:
            assert saved.mode == "I;16"
        opened = open_image(tmp_path / f"x.{name}")
    nearest = bytes(round(value * 255 / 65535) for value in range(65536))
    assert opened.mode == "RGB"
    assert [band.tobytes() for band in opened.split()] == [nearest] * 3


@pytest.mark.parametrize("key", [0, 5, 32896, 65535])
def test_one_grey_of_16_bits_is_transparent(tmp_path: Path, key: int) -> None:
    every_16_bits().save(tmp_path / "x.png", transparency=key)
    expected = [round(value * 255 / 65535) for value in range(65536)]
    expected[key] = 255
    assert open_image(tmp_path / "x.png").getchannel("G").tobytes() == bytes(expected)


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
        (torch.full((3, 8, 8), torch.nan), r"got values that are not finite, expected \[-1, 1\]"),
        (torch.zeros(3, 8, 8).index_fill_(0, torch.tensor(1), torch.nan), "not finite"),
        (torch.zeros(3, 8, 8).index_fill_(0, torch.tensor(1), torch.inf), "not finite"),
        (torch.zeros(3, 0, 8), r"got a tensor \(1, 3, 0, 8\)"),
    ],
    ids=["channels", "bytes", "range", "nan", "one-nan", "one-infinity", "empty"],
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


sides = st.tuples(st.integers(1, 3000), st.integers(1, 3000))


@settings(deadline=None)
@given(original=sides, size=sides, fit=st.sampled_from(FITS))
def test_a_placement_lies_inside_in_the_middle_and_keeps_proportions(
    original: tuple[int, int], size: tuple[int, int], fit: str
) -> None:
    placement = Placement.create(original, size, fit)
    part_sizes = []
    for (left, top, right, bottom), whole in (
        (placement.taken, original),
        (placement.filled, size),
    ):
        assert 0 <= left < right <= whole[0] and 0 <= top < bottom <= whole[1]
        assert 0 <= (whole[0] - right) - left <= 1 and 0 <= (whole[1] - bottom) - top <= 1
        part_sizes.append((right - left, bottom - top))
    taken, filled = part_sizes
    assert filled == size or fit == "pad"
    assert taken == original or fit == "crop"
    if fit != "stretch":
        whole, part = (size, taken) if fit == "crop" else (original, filled)
        room = original if fit == "crop" else size
        assert part[0] == room[0] or part[1] == room[1], "as large as there is room"
        scale = min(room[0] / whole[0], room[1] / whole[1])
        for side, full in zip(part, whole, strict=True):
            assert abs(side - full * scale) <= 0.5 or side == 1


@pytest.mark.parametrize(
    ("fit", "size"), [("crop", (32, 32)), ("stretch", (32, 48)), ("pad", (32, 64))]
)
def test_each_fit_fills_the_size_whatever_the_shape(fit: str, size: tuple[int, int]) -> None:
    tensor = load_image(two_halves(64, 32), size, fit=fit)
    assert tensor.shape == (1, 3, size[1], size[0])
    assert (tensor[0, 0, :, :12] > 0.99).all() and (tensor[0, 2, :, 20:] > 0.99).all()
    assert (tensor[0, 2, :, :12] < -0.99).all() and (tensor[0, 0, :, 20:] < -0.99).all()


def test_padding_continues_the_edges() -> None:
    rows = Image.new("RGB", (8, 4), "white")
    rows.paste("black", (0, 0, 8, 1))
    assert load_image(rows, (8, 10), fit="pad")[0, 0, :, 3].tolist() == [-1] * 4 + [1] * 6
    columns = rows.transpose(Image.Transpose.TRANSPOSE)
    assert load_image(columns, (10, 8), fit="pad")[0, 0, 3].tolist() == [-1] * 4 + [1] * 6


def photograph(width: int, height: int) -> Image.Image:
    """Smooth in both directions, another colour in each corner."""
    across = torch.linspace(-1, 1, width).expand(height, width)
    down = torch.linspace(-1, 1, height)[:, None].expand(height, width)
    return to_pil(torch.stack([across, down, -across])[None])[0]


def largest_difference(a: Image.Image, b: Image.Image) -> int:
    return max(abs(x - y) for x, y in zip(a.tobytes(), b.tobytes(), strict=True))


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("shape", [(97, 61), (61, 97), (64, 64)], ids=str)
@pytest.mark.parametrize("size", [(64, 48), (32, 96)], ids=str)
def test_what_is_not_edited_comes_back_in_its_place(
    fit: str, shape: tuple[int, int], size: tuple[int, int]
) -> None:
    original = photograph(*shape)
    placement = Placement.create(original.size, size, fit)
    fitted = to_pil(fit_image(original, placement))[0]
    back = paste_back(fitted, original, placement)
    assert back.mode == "RGB" and back.size == shape
    assert largest_difference(back, original) <= 2  # half a pixel of the steepest gradient


def test_the_crop_is_replaced_and_around_it_every_pixel_stays() -> None:
    original = Image.effect_noise((90, 50), 90).convert("RGB")
    before = original.copy()
    placement = Placement.create(original.size, (32, 32), "crop")
    assert placement.taken == (20, 0, 70, 50)
    back = paste_back(Image.new("RGB", (32, 32), BLUE), original, placement)
    assert back.crop(placement.taken).getcolors() == [(2500, BLUE)]
    for around in ((0, 0, 20, 50), (70, 0, 90, 50)):
        assert back.crop(around).tobytes() == original.crop(around).tobytes()
    assert original.tobytes() == before.tobytes()


def test_padding_is_cut_off_again() -> None:
    original = two_halves(40, 20)
    placement = Placement.create(original.size, (20, 20), "pad")
    edited = Image.new("RGB", (20, 20), "white")
    edited.paste(BLUE, placement.filled)
    assert paste_back(edited, original, placement).getcolors() == [(800, BLUE)]


def test_a_rotated_original_gets_its_edit_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    two_halves(60, 20).save(tmp_path / "x.png", exif=exif)
    upright = open_image(tmp_path / "x.png")
    placement = Placement.create(upright.size, (16, 16), "crop")
    assert placement.original == (20, 60) and placement.taken == (0, 20, 20, 40)
    back = paste_back(Image.new("RGB", (16, 16), "white"), tmp_path / "x.png", placement)
    back.save(tmp_path / "y.png")
    again = open_image(tmp_path / "y.png")
    assert [again.getpixel((10, y)) for y in (10, 30, 50)] == [BLUE, (255, 255, 255), RED]


def test_what_cannot_be_pasted_back_is_refused() -> None:
    original = two_halves(64, 32)
    placement = Placement.create(original.size, (32, 32), "crop")
    small = Image.new("RGB", (32, 32))
    with pytest.raises(ValueError, match="edited: got 64x32, expected 32x32"):
        paste_back(original, original, placement)
    with pytest.raises(ValueError, match="original: got 32x32, expected 64x32: give the image"):
        paste_back(small, small, placement)
    with pytest.raises(ValueError, match="placement: got none, as of a tensor"):
        paste_back(small, original, None)


@pytest.mark.parametrize(
    ("size", "fit", "message"),
    [
        (32, "squeeze", "fit: got 'squeeze', expected one of crop, pad, stretch"),
        ((32, 0), "crop", "size: got 0, expected 1 to 1000000, in pixels"),
    ],
)
def test_a_fit_that_cannot_be_is_refused(
    size: int | tuple[int, int], fit: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_image(two_halves(64, 32), size, fit=fit)
