"""Inversions that the commands are tried on: of a sample, and of a wider picture of it."""

from pathlib import Path

import pytest
from PIL import Image

from nti.cli import main
from nti.demo import sample_image
from sample import CAPTION, FEW


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "x.nti.safetensors"
    image = str(sample_image("purple-circle"))
    assert main(["invert", image, "--prompt", CAPTION, *FEW, "-o", str(path)]) == 0
    return path


@pytest.fixture(scope="session")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sample on the left of a wider picture, lying on its side as its EXIF says."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path_factory.mktemp("cli") / "photograph.png"
    with Image.open(sample_image("purple-circle")) as sample:
        wide = Image.new("RGB", (200, 136), "white")
        wide.paste(sample, (4, 4))
    wide.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    return path


@pytest.fixture(scope="session")
def saved_wide(photograph: Path) -> Path:
    path = photograph.with_name("wide.nti.safetensors")
    size = ["--size", "160x128", "--fit", "crop"]
    arguments = ["invert", str(photograph), "--prompt", CAPTION, *size, *FEW, "--method", "ddim"]
    assert main([*arguments, "-o", str(path)]) == 0
    return path
