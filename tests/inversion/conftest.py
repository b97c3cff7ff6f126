"""Inversions by every method, made once for all tests."""

import pytest
from torch import Tensor

from nti import Inversion, StableDiffusion, invert
from plain_loop import PROMPT, Made, N, T, W, read_by


@pytest.fixture(scope="session")
def made(model: StableDiffusion, image: Tensor) -> Made:
    """Invert by a method, once for all tests that ask for the same."""
    found: dict[str, Inversion] = {}

    def of(method: str, **settings: object) -> Inversion:
        key = f"{method} {settings}"
        if key not in found:
            given = {**read_by(method, inner_steps=N), "steps": T, "guidance_scale": W, **settings}
            found[key] = invert(model, image, PROMPT, method=method, **given)
        return found[key]

    return of
