"""A tiny model's functions and its ONNX export; the embedded model's export in both formats."""

from pathlib import Path

import pytest
import torch

from nti import StableDiffusion
from nti.export.export import export
from nti.export.exported import Exported, load_exported
from nti.export.functions import Function, functions_of
from tiny import TINY, make_model

STEPS = 6


@pytest.fixture(scope="session")
def small() -> StableDiffusion:
    """Tiny, in float32 and channels last, as a loaded model is."""
    model = make_model(TINY, torch.float32)
    model.unet.to(memory_format=torch.channels_last)
    return model


@pytest.fixture(scope="session")
def functions(small: StableDiffusion) -> dict[str, Function]:
    return {each.name: each for each in functions_of(small, (64, 64), batch=2, edits=2)}


@pytest.fixture(scope="session")
def folder(small: StableDiffusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of one image and two edits at once, as ONNX."""
    path = tmp_path_factory.mktemp("export") / "tiny"
    export(small, path, edits=2, steps=STEPS, formats=["onnx"])
    return path


@pytest.fixture(scope="session")
def exported(folder: Path) -> Exported:
    return load_exported(folder, "onnx", threads=1)
