"""Models shared by the tests: the tiny random one in float64, and the embedded one."""

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from nti.kernels import linear_onednn

from nti import Inversion, StableDiffusion, invert, load_model
from selection import chosen
from tiny import make_model
from tolerances import MEASURED

torch.set_num_threads(1)  # tiny tensors: a second thread costs more than it brings

PROMPT = "a cat sitting next to a mirror"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--errors", type=Path, help="write each test's largest relative error (CSV)")
    parser.addoption("--cuda", action="store_true", help="only the tests that need CUDA")
    parser.addoption("--part", metavar="I/N", help="every N-th test from the I-th on")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept = chosen(items, config.getoption("--cuda"), config.getoption("--part"))
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    path = session.config.getoption("--errors")
    if path is not None and exitstatus == 0:
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["test", "dtype", "error"])
            writer.writerows((*key, f"{error:.1e}") for key, error in sorted(MEASURED.items()))


@pytest.fixture(autouse=True)
def full_float32() -> Iterator[None]:
    """The tolerances of float32 are not TF32's, in which PyTorch convolves on CUDA by default."""
    places = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = False
    yield
    for place, allowed in zip(places, before, strict=True):
        place.allow_tf32 = allowed


@pytest.fixture(scope="session")
def model() -> StableDiffusion:
    return make_model()


@pytest.fixture(scope="session")
def image() -> torch.Tensor:
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)).double() * 2 - 1


@pytest.fixture(scope="session")
def inversion(model: StableDiffusion, image: torch.Tensor) -> Inversion:
    """Ten steps of the tiny model at w = 3."""
    return invert(model, image, PROMPT, steps=10, guidance_scale=3.0, inner_steps=2)


@pytest.fixture(scope="session")
def embedded() -> StableDiffusion:
    return load_model(device="cpu")


@pytest.fixture
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers too small to be worth oneDNN take its path all the same."""
    monkeypatch.setattr(linear_onednn, "WORTH", 0)
