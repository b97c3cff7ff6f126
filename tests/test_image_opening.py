"""Files of any kind: what is opened, how large it may be, and damage that does not matter."""

import io
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from nti.image import FORMATS, MOST_PIXELS, open_image
from nti.inversion.provenance import image_digest

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture(autouse=True)
def no_warning_of_size() -> Iterator[None]:
    """Pillow's is not what a user should see. Of a tag that it skips it may tell."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*(EXIF|Skipping tag)")
        yield


def two_halves() -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (40, 20), RED)
    image.paste(BLUE, (20, 0, 40, 20))
    return image


def file_of(format_: str, **options: object) -> bytes:
    data = io.BytesIO()
    two_halves().save(data, format_, **options)
    return data.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *, colour: int = 2, rows: bytes = b"", more: bytes = b"") -> bytes:
    """A PNG file of any size in its header; `rows` are compressed, `more` chunks come before."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    body = chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + more + body


def oriented(value: int, *, before: bytes = b"") -> bytes:
    """EXIF of an orientation, behind another entry of 12 bytes."""
    entries = before + struct.pack("<HHIHH", 0x0112, 3, 1, value, 0)
    count = struct.pack("<H", len(entries) // 12)
    return b"Exif\0\0II*\0\x08\0\0\0" + count + entries + bytes(4)


FAR_AWAY = struct.pack("<HHII", 0x010E, 2, 5000, 90000)
"""A description whose text lies beyond the end."""
UNKNOWN_TYPE = struct.pack("<HHII", 0x0100, 77, 1, 0)


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_is_opened_whatever_the_file_is_called(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.dat"
    path.write_bytes(file_of(name))
    opened = open_image(path)
    for x, colour in ((4, RED), (35, BLUE)):
        found = opened.getpixel((x, 10))
        assert all(abs(a - b) < 6 for a, b in zip(found, colour, strict=True))


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 20\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize(
    "data", [POSTSCRIPT, file_of("ICO"), file_of("TGA"), b"", b"\0", b"no picture"],
    ids=["eps", "ico", "tga", "empty", "zero", "text"],
)  # fmt: skip
def test_other_formats_are_refused_and_the_list_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    def started(*_: object, **__: object) -> None:
        pytest.fail("a program was started")

    monkeypatch.setattr("subprocess.check_call", started)
    monkeypatch.setattr("subprocess.Popen", started)
    path = tmp_path / "x.png"
    path.write_bytes(data)
    with pytest.raises(ValueError) as error:
        open_image(path)
    assert str(error.value).startswith(f"{path}: not an image that can be read (expected one of")
    assert all(name in str(error.value) for name in FORMATS)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize(
    "exif",
    [b"\1\2\3\4\5\6\7\x08", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"x"],
    ids=["stray", "empty", "offset", "one"],
)
def test_exif_that_cannot_be_read_is_ignored(tmp_path: Path, suffix: str, exif: bytes) -> None:
    path = tmp_path / f"x.{suffix}"
    if suffix == "tif":
        two_halves().save(path, tiffinfo={700: exif})
    else:
        two_halves().save(path, exif=exif)
    assert open_image(path).size == (40, 20)


def test_a_text_chunk_of_exif_that_cannot_be_read_is_ignored(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", "\nexif\n  8\nzz")
    two_halves().save(tmp_path / "x.png", pnginfo=text)
    assert open_image(tmp_path / "x.png").size == (40, 20)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("before", [b"", FAR_AWAY, UNKNOWN_TYPE], ids=["alone", "far", "unknown"])
def test_an_orientation_is_read_beside_a_bad_tag(
    tmp_path: Path, suffix: str, before: bytes
) -> None:
    path = tmp_path / f"x.{suffix}"
    two_halves().save(path, exif=oriented(6, before=before))
    upright = open_image(path)
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 4))[0] > 250 and upright.getpixel((10, 35))[2] > 250


@pytest.mark.parametrize("value", range(10))
def test_every_orientation_is_turned_as_pillow_turns_it(tmp_path: Path, value: int) -> None:
    from PIL import ImageOps

    image = two_halves()
    image.putpixel((0, 0), (0, 255, 0))
    image.save(tmp_path / "x.png", exif=oriented(value))
    with Image.open(tmp_path / "x.png") as opened:
        expected = ImageOps.exif_transpose(opened)
    assert open_image(tmp_path / "x.png").tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", [n for n in FORMATS if n != "PPM"] + ["PPM"])
def test_a_file_cut_anywhere_is_one_error_or_a_picture(tmp_path: Path, name: str) -> None:
    whole = file_of(name)
    path = tmp_path / "x"
    for length in [*range(0, 64, 3), *range(64, len(whole), max(1, len(whole) // 20))]:
        path.write_bytes(whole[:length])
        try:
            opened = open_image(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
        else:
            assert opened.size == (40, 20)
    assert open_image_of(path, whole).size == (40, 20)


def open_image_of(path: Path, data: bytes) -> Image.Image:
    path.write_bytes(data)
    return open_image(path)


ROWS = zlib.compress((b"\0" + bytes(3 * 8)) * 8)
BLOAT = b"zTXt", b"comment\0\0" + zlib.compress(bytes(80 * 2**20))


@pytest.mark.parametrize(
    "data",
    [
        png(0, 8), png(8, 0), b"P6 0 0 255\n",
        png(8, 8, rows=ROWS[:-9]), png(8, 8, rows=b"rubbish"),
        png(8, 8, rows=ROWS, more=chunk(*BLOAT)), png(8, 8, colour=3, rows=ROWS),
        png(8, 8, colour=9, rows=ROWS),
    ],
    ids=["no-width", "no-height", "ppm", "cut", "rubbish", "text", "no-palette", "colour"],
)  # fmt: skip
def test_what_is_damaged_is_one_error_or_a_picture(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.png"
    try:
        assert open_image_of(path, data).size == (8, 8)
    except ValueError as error:
        assert str(error).startswith((f"{path}: ", "image: got")) and "\n" not in str(error)


@pytest.mark.parametrize(
    "image", [Image.new("RGB", (0, 5)), Image.new("L", (5, 0))], ids=["width", "height"]
)
def test_an_image_without_pixels_is_refused(image: Image.Image) -> None:
    with pytest.raises(ValueError, match="pixels, expected 1 or more"):
        open_image(image)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE, "white")]
    path = tmp_path / f"x.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    assert open_image(path).getcolors() == [(256, RED)]


@pytest.mark.parametrize("side", [10**4, 40_000])
def test_a_file_of_too_many_pixels_is_refused_before_it_is_loaded(
    tmp_path: Path, side: int
) -> None:
    path = tmp_path / "x.png"
    with pytest.raises(ValueError) as error:
        open_image_of(path, png(MOST_PIXELS // 10**4 + 1, side, rows=b"never read"))
    for part in (f"{path}: got 12001x{side} pixels", "at most 120,000,000", "scale it down"):
        assert part in str(error.value)


def test_a_caller_may_open_a_larger_one() -> None:
    assert open_image(Image.new("1", (MOST_PIXELS // 1000 + 1, 1))).width == 120_001


@pytest.mark.parametrize(
    "image",
    [None, 3, 2.5, bytearray(b"x.png"), {"path": 1}, ["x.png"], True, object()],
    ids=lambda x: type(x).__name__,
)
def test_what_is_no_image_is_refused(image: object) -> None:
    with pytest.raises(
        ValueError, match=r"image: got .*, expected a path, a file's bytes, a PIL image or a NumPy"
    ):
        open_image(image)


def test_a_files_bytes_are_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png(8, 8, rows=ROWS))
    assert open_image(path.read_bytes()).tobytes() == open_image(path).tobytes()
    assert image_digest(path.read_bytes()) == image_digest(path)
    with pytest.raises(ValueError, match="image: not an image that can be read"):
        open_image(b"x.png")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", ".", "/dev/null"], ids=range(4))
def test_a_name_that_is_no_files_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no such file; expected an image"):
        open_image(name)


def test_a_pil_image_whose_file_is_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png(8, 8, rows=ROWS[:-9]))
    with Image.open(path) as lazy, pytest.raises(ValueError, match="image: not one that can be"):
        open_image(lazy)


PEAK = """
from pathlib import Path
import sys, warnings
warnings.simplefilter("error")
from nti.image import load_image
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
before = peak()
tensor = load_image(sys.argv[1], 512)
assert tensor.shape == (1, 3, 512, 512) and tensor[0, 0, 300, 300] == 1
print(before, peak())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells of the peak")
def test_a_small_file_of_100_million_pixels_takes_little_memory(tmp_path: Path) -> None:
    """A palette with transparency, turned on its side: it took 2.2 GB."""
    palette = chunk(b"PLTE", bytes(range(256)) * 3) + chunk(b"tRNS", bytes(256))
    exif = chunk(b"eXIf", oriented(6)[6:])
    rows = zlib.compress(bytes(10_001 * 10_000))
    path = tmp_path / "x.png"
    path.write_bytes(png(10_000, 10_000, colour=3, rows=rows, more=palette + exif))
    assert path.stat().st_size < 200_000
    result = subprocess.run(
        [sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr[-2000:]
    before, after = (int(kib) / 2**20 for kib in result.stdout.split())
    print(f"{before:.2f} GiB before, {after:.2f} GiB at most")
    assert after - before < 0.7 and after < 1.6, result.stdout
