import pytest
import torch

from nti.model import StableDiffusion
from tiny import SD_LIKE, make_model


@pytest.fixture(scope="session")
def small() -> StableDiffusion:
    """A model of SD v1's depth, which is small."""
    return make_model(SD_LIKE, torch.float32)


@pytest.fixture
def sd_v1_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without a configuration is taken for SD v1: make that a small one here."""
    monkeypatch.setattr("nti.model.SD_V1", SD_LIKE)
