"""Colour profiles: what a photograph in AdobeRGB, Display P3, grey or CMYK looks like in sRGB."""

import struct
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageCms

from nti.image import Placement, load_image, open_image, paste_back

Columns = tuple[tuple[float, float, float], ...]

# Red, green and blue of each space in XYZ under D50, as its profile holds them.
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
GAMMA = 563 / 256


def fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)


def profile(space: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr") -> bytes:
    """An ICC profile of version 2.1, its header and the table of its tags."""
    offset, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        table += name + struct.pack(">II", offset + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    pcs = b"Lab " if b"A2B0" in tags else b"XYZ "
    head = bytes(8) + struct.pack(">I", 0x02100000) + kind + space + pcs + bytes(12) + b"acsp"
    head += bytes(28) + fixed(0.9642, 1.0, 0.8249) + bytes(48)
    whole = head + struct.pack(">I", len(tags)) + table + body
    return struct.pack(">I", len(whole)) + whole[4:]


def rgb_profile(columns: Columns, gamma: float = GAMMA) -> bytes:
    places = {
        name + b"XYZ": b"XYZ " + bytes(4) + fixed(*column)
        for name, column in zip((b"r", b"g", b"b"), columns, strict=True)
    }
    white = {b"wtpt": b"XYZ " + bytes(4) + fixed(0.9642, 1.0, 0.8249)}
    return profile(
        b"RGB ", white | places | {name + b"TRC": curve(gamma) for name in (b"r", b"g", b"b")}
    )


def grey_profile(gamma: float) -> bytes:
    white = b"XYZ " + bytes(4) + fixed(0.9642, 1.0, 0.8249)
    return profile(b"GRAY", {b"wtpt": white, b"kTRC": curve(gamma)})


def black_alone_profile() -> bytes:
    """Of CMYK in which cyan, magenta and yellow leave no trace."""
    identity = fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    ramp = bytes(range(256))
    colours = b"".join(bytes([0 if i % 2 else 255, 128, 128]) for i in range(16))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + ramp * 4 + colours + ramp * 3
    return profile(b"CMYK", {b"A2B0": table}, b"prtr")


def encoded(linear: float) -> float:
    """sRGB's transfer function, 0..1 -> 0..255."""
    linear = min(max(linear, 0.0), 1.0)
    return 255 * (12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055)


def expected_rgb(columns: Columns, pixel: tuple[int, int, int]) -> list[float]:
    linear = torch.tensor([(value / 255) ** GAMMA for value in pixel], dtype=torch.float64)
    xyz = torch.tensor(columns, dtype=torch.float64).T @ linear
    return [encoded(x) for x in torch.linalg.solve(torch.tensor(SRGB).double().T, xyz).tolist()]


def close(found: tuple[int, ...], expected: list[float], levels: float = 1.6) -> bool:
    return all(abs(a - b) <= levels for a, b in zip(found, expected, strict=True))


PIXEL = (200, 120, 60)


@pytest.mark.parametrize("columns", [ADOBE, P3], ids=["adobe", "p3"])
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("pixel", [PIXEL, (90, 130, 220), (255, 255, 255), (0, 0, 0)], ids=str)
def test_a_wider_space_is_brought_to_srgb(
    tmp_path: Path, columns: Columns, suffix: str, pixel: tuple[int, int, int]
) -> None:
    path = tmp_path / f"x.{suffix}"
    options = (
        {"quality": 100} if suffix == "jpg" else {"lossless": True} if suffix == "webp" else {}
    )
    Image.new("RGB", (9, 7), pixel).save(path, icc_profile=rgb_profile(columns), **options)
    opened = open_image(path)
    expected = expected_rgb(columns, pixel)
    levels = 3.0 if suffix == "jpg" else 1.6  # a JPEG has rounded its own colours
    assert close(opened.getpixel((3, 3)), expected, levels), (opened.getpixel((3, 3)), expected)
    assert opened.mode == "RGB" and opened.info == {}
    assert load_image(path, 8)[0, 0, 3, 3].item() == pytest.approx(
        opened.getpixel((3, 3))[0] / 127.5 - 1
    )


def tagged(image: Image.Image, data: bytes) -> Image.Image:
    image.info["icc_profile"] = data
    return image


@pytest.mark.parametrize("mode", ["P", "RGBA", "PA", "LA", "L", "1", "I;16"])
def test_a_profile_holds_for_every_mode_of_its_space(mode: str) -> None:
    grey = mode in ("LA", "L", "1", "I;16")
    pixel = (255,) * 3 if mode == "1" else (200,) * 3 if grey else PIXEL
    if mode == "I;16":
        image = Image.new(mode, (4, 4), 200 * 257)
    else:
        base = Image.new("RGB", (4, 4), pixel)
        image = base.convert("P", palette=Image.Palette.ADAPTIVE) if mode[0] == "P" else base
        image = image.convert(mode)
    opened = open_image(tagged(image, rgb_profile(ADOBE)))
    assert close(opened.getpixel((0, 0)), expected_rgb(ADOBE, pixel))


def test_colours_are_converted_before_they_are_laid_on_white() -> None:
    image = Image.new("RGBA", (1, 1), (*PIXEL, 128))
    opened = open_image(tagged(image, rgb_profile(ADOBE))).getpixel((0, 0))
    share = 128 / 255
    expected = [255 * (1 - share) + x * share for x in expected_rgb(ADOBE, PIXEL)]
    assert close(opened, expected)


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_a_grey_profile_is_used(mode: str) -> None:
    image = Image.new("I;16", (1, 1), 90 * 257) if mode == "I;16" else Image.new("L", (1, 1), 90)
    image = image if mode == "I;16" else image.convert(mode)
    opened = open_image(tagged(image, grey_profile(1.0)))
    assert close(opened.getpixel((0, 0)), [encoded(90 / 255)] * 3)


def test_a_cmyk_profile_is_used(tmp_path: Path) -> None:
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    cyan.save(tmp_path / "x.tif", icc_profile=black_alone_profile())
    assert min(open_image(tmp_path / "x.tif").getpixel((0, 0))) >= 254
    black = tagged(Image.new("CMYK", (8, 8), (0, 0, 0, 255)), black_alone_profile())
    assert max(open_image(black).getpixel((0, 0))) <= 1
    assert open_image(cyan).getpixel((0, 0)) == (0, 255, 255), "without a profile, as Pillow does"


def test_srgbs_own_profile_changes_nothing() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    noise = Image.merge("RGB", [Image.effect_noise((64, 64), 90) for _ in range(3)])
    before = noise.tobytes()
    after = open_image(tagged(noise, srgb)).tobytes()
    assert max(abs(a - b) for a, b in zip(before, after, strict=True)) <= 1


@pytest.mark.parametrize(
    ("mode", "data"),
    [
        ("RGB", b"no profile"),
        ("RGB", rgb_profile(ADOBE)[:150]),
        ("RGB", b"\0" * 500),
        ("RGB", grey_profile(2.2)),
        ("RGB", black_alone_profile()),
        ("CMYK", rgb_profile(ADOBE)),
        ("RGB", profile(b"HSV ", {b"kTRC": curve(1.0)})),
        ("RGB", profile(b"RGB ", {})),
    ],
    ids=["text", "cut", "zeros", "grey", "cmyk", "rgb", "hsv", "empty"],
)
def test_a_profile_that_cannot_be_used_is_ignored_with_a_warning(mode: str, data: bytes) -> None:
    plain = Image.new("RGB", (4, 4), PIXEL).convert(mode)
    expected = open_image(plain).tobytes()
    with pytest.warns(UserWarning, match="its colour profile cannot be used .* read as sRGB") as w:
        assert open_image(tagged(plain, data)).tobytes() == expected
    assert w[0].filename == __file__


def test_metadata_does_not_outlive_the_pixels_that_it_is_about(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    image = Image.new("RGBA", (6, 4), (*PIXEL, 128))
    image.save(tmp_path / "x.png", icc_profile=rgb_profile(P3), exif=exif, dpi=(72, 72))
    opened = open_image(tmp_path / "x.png")
    assert opened.info == {} and not opened.getexif()
    given = Image.new("RGB", (6, 4))
    given.info |= {"gamma": 1.0, "chromaticity": (0.3,) * 8, "transparency": (0, 0, 0)}
    before = dict(given.info)
    assert open_image(given).info == {} and given.info == before


def test_an_edit_is_pasted_back_in_srgb_throughout(tmp_path: Path) -> None:
    original = tagged(Image.new("RGB", (60, 20), PIXEL), rgb_profile(ADOBE))
    original.save(tmp_path / "x.png", icc_profile=original.info["icc_profile"])
    placement = Placement.create((60, 20), 16, "crop")
    edited = Image.new("RGB", (16, 16), "blue")
    paste_back(edited, tmp_path / "x.png", placement).save(tmp_path / "y.png")
    with Image.open(tmp_path / "y.png") as back:
        assert "icc_profile" not in back.info
        assert close(back.getpixel((2, 2)), expected_rgb(ADOBE, PIXEL))
        assert back.getpixel((30, 10)) == (0, 0, 255)
    assert original.getpixel((2, 2)) == PIXEL, "the caller's image is as it was"
