"""What Python callers give: scalars of other libraries count as numbers, all else is one line."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import nti
from nti import StableDiffusion

SCALARS: dict[str, Callable[[float], Any]] = {
    "numpy": lambda x: np.float32(x) if x % 1 else np.int64(x),
    "torch": torch.tensor,
    "array": np.array,
}


@pytest.mark.parametrize("kind", SCALARS)
def test_scalars_of_other_libraries_are_numbers(
    model: StableDiffusion, image: torch.Tensor, kind: str
) -> None:
    number = SCALARS[kind]
    settings = {"steps": 2, "inner_steps": 1, "guidance_scale": 2.5}
    plain = nti.invert(model, image, "a cat", **settings)  # type: ignore[arg-type]
    given = {name: number(value) for name, value in settings.items()}
    assert nti.invert(model, image, "a cat", **given) == plain  # type: ignore[arg-type]
    made = nti.generate(model, "a cat", steps=number(2), seed=number(3), size=(number(64), 64))
    assert made == nti.generate(model, "a cat", steps=2, seed=3, size=64)


WRONG = (None, "1", b"1", 1.5, -1, True, [], {}, (1, 2, 3), float("nan"), float("inf"), 10**400)


@pytest.mark.parametrize("value", WRONG, ids=lambda value: repr(value)[:12])
@pytest.mark.parametrize(
    "name",
    ["steps", "inner_steps", "guidance_scale", "method", "noise_at", "learning_rate", "size"],
)
def test_a_wrong_setting_is_one_line_that_names_it(
    model: StableDiffusion, name: str, value: object
) -> None:
    fits = {"guidance_scale": (None, 1.5, -1), "size": (None,)}
    if any(value is x or value == x for x in fits.get(name, ())) and value is not True:
        return
    picture = torch.zeros(3, 64, 64).permute(1, 2, 0).numpy()
    with pytest.raises(ValueError, match=name) as error:
        nti.invert(model, picture, "a cat", **{name: value})  # type: ignore[arg-type]
    assert "\n" not in str(error.value) and "expected" in str(error.value)


@pytest.mark.parametrize("value", [None, 3, b"a", ["a"], "\ud800"], ids=repr)
def test_a_prompt_is_a_string(model: StableDiffusion, image: torch.Tensor, value: Any) -> None:
    for use in (
        lambda: nti.invert(model, image, value, steps=1, method="ddim"),
        lambda: nti.generate(model, value, steps=1),
        lambda: nti.generate(model, "a", steps=1, negative_prompt=value),
    ):
        with pytest.raises(ValueError, match="prompt: got"):
            use()


def test_a_rule_that_gives_no_number_is_refused(
    model: StableDiffusion, image: torch.Tensor
) -> None:
    with pytest.raises(ValueError, match=r"learning_rate\(0, 2\): got None, expected a finite"):
        nti.invert(model, image, "a cat", steps=2, learning_rate=lambda i, t: None)  # type: ignore[arg-type, return-value]
