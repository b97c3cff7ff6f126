"""The table of editors says what their functions are, and each goes with every inversion method."""

import inspect
from typing import Any

import pytest
import torch

from nti import EDITORS, METHODS, StableDiffusion, invert
from nti.editing.editors import Editor
from plain_loop import read_by

TIGER = "a tiger sitting next to a mirror"
PROMPT = "a cat sitting next to a mirror"
MASK = torch.zeros(64, 64)
MASK[:, 24:48] = 1
SETTINGS: dict[str, dict[str, Any]] = {
    "masked": {"mask": MASK},
    "imagic": {"embedding_steps": 1, "model_steps": 1},
    "unitune": {"iterations": 1, "batch": 1},
}
"""What an editor needs, or what keeps it short."""

EACH = pytest.mark.parametrize("editor", EDITORS.values(), ids=EDITORS)


@EACH
def test_a_row_takes_what_its_function_does(editor: Editor) -> None:
    settings = {
        name: parameter
        for name, parameter in inspect.signature(editor.function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name != "callback"
    }
    assert sorted(editor.takes) == sorted(settings)
    required = {name for name, p in settings.items() if p.default is p.empty}
    assert required == set(editor.needs)


@pytest.mark.filterwarnings("ignore:edit. .* changes the picture by")
@pytest.mark.parametrize("method", METHODS)
def test_every_editor_goes_with_every_method(
    model: StableDiffusion, image: torch.Tensor, method: str
) -> None:
    inversion = invert(
        model, image, PROMPT, method=method, steps=2, **read_by(method, inner_steps=1)
    )
    for editor in EDITORS.values():
        settings = SETTINGS.get(editor.name, {})
        if editor.trajectory and not METHODS[method].sampled:
            with pytest.raises(ValueError, match="which has no trajectory for .*: invert with"):
                editor.function(model, inversion, TIGER, **settings)
        else:
            result = editor.function(model, inversion, TIGER, **settings)
            assert result.latents.isfinite().all() and len(result.images) == 1, editor.name
