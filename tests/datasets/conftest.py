"""Scenes and what one process makes of them, for runs that somebody kills."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from nti import StableDiffusion
from nti.datasets.item import Manifest
from nti.datasets.manifest import read_manifest
from nti.datasets.run import Here, run_manifest
from world import COUNT, FAST, write_manifest


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return read_manifest(write_manifest(tmp_path_factory.mktemp("scenes"), COUNT))


@pytest.fixture(scope="module")
def expected(
    embedded: StableDiffusion, manifest: Manifest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What one process makes of them, item by item, that nobody kills."""
    out = tmp_path_factory.mktemp("scenes") / "here"
    run_manifest(manifest, out, Here(embedded), settings=FAST, batch=1)
    return out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of noise, each another."""
    for number in range(5):
        generator = torch.Generator().manual_seed(number)
        pixels = torch.randint(0, 256, (64 * 64 * 3,), generator=generator)
        Image.frombytes("RGB", (64, 64), bytes(pixels.tolist())).save(tmp_path / f"{number}.png")
    return tmp_path
