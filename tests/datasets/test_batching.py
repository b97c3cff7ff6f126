"""How many images are made at once: by measured memory, and less where it runs out."""

from collections.abc import Sequence

import pytest
import torch

from nti import InversionSettings, StableDiffusion
from nti.datasets import batching
from nti.datasets.batching import MOST, in_parts, measured_batch

SETTINGS = InversionSettings(steps=50)


def test_memory_that_is_free_allows_the_most(model: StableDiffusion) -> None:
    assert measured_batch(model, SETTINGS) == MOST["cpu"]
    assert measured_batch(model, InversionSettings(method="direct")) == MOST["cpu"]


@pytest.mark.parametrize(("images", "expected"), [(0.5, 1), (1.5, 1), (2.5, 2), (3.5, 3), (99, 4)])
def test_a_batch_is_what_fits(
    images: float, expected: int, model: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each image takes 100 bytes beside 50 for all, and 80 % of what is free may be taken."""
    sizes: list[int] = []

    class Peak:
        def __init__(self, device: torch.device) -> None: ...

        def __enter__(self) -> "Peak":
            return self

        def __exit__(self, *_: object) -> None: ...

        def __call__(self) -> int:
            return 50 + 100 * sizes[-1]

    def invert(model: object, images: Sequence[object], *_: object, **__: object) -> None:
        sizes.append(len(images))

    monkeypatch.setattr(batching, "_peak", Peak)
    monkeypatch.setattr(batching, "invert_batch", invert)
    monkeypatch.setattr(batching, "free_memory", lambda device: (50 + 100 * images) / 0.8)
    assert measured_batch(model, SETTINGS) == expected
    assert measured_batch(model, SETTINGS, sharing=2) <= expected


def test_a_probe_that_does_not_fit_allows_one(
    model: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(batching, "invert_batch", never)
    assert measured_batch(model, SETTINGS) == 1


def test_a_batch_is_halved_until_it_fits() -> None:
    asked: list[int] = []

    def double(batch: Sequence[int]) -> list[int]:
        asked.append(len(batch))
        if len(batch) > 2:
            raise MemoryError
        return [2 * x for x in batch]

    assert in_parts(double, [1, 2, 3, 4, 5]) == [2, 4, 6, 8, 10]
    assert asked == [5, 2, 3, 1, 2]

    def wrong(batch: Sequence[int]) -> list[int]:
        raise ValueError("not of memory")

    with pytest.raises(ValueError, match="not of memory"):
        in_parts(wrong, [1, 2])
