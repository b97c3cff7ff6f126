"""What Python callers give: scalars of other libraries, the published notebook's shapes, and
whatever is no setting at all.
"""

import contextlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import nti
from nti import EditPlan, Inversion, StableDiffusion, Stopped
from nti.editing.alignment import align, has_word, token_positions
from nti.editing.attention_grid import attention_grid, component_grid
from nti.editing.attention_maps import average_attention, self_attention_components

TIGER = "a tiger sitting next to a mirror"


def planned(model: StableDiffusion, inversion: Inversion, **settings: Any) -> EditPlan:
    prompts = settings.pop("prompts", TIGER)
    settings = {"steps": inversion.steps} | settings
    return EditPlan.create(model.tokenizer, inversion.prompt, prompts, **settings)


def begun(function: Callable[..., object], *given: object, **settings: object) -> None:
    """Run the first step alone: settings are checked before it."""
    with contextlib.suppress(Stopped):
        function(*given, callback=lambda *_: True, **settings)


def same(a: EditPlan, b: EditPlan) -> bool:
    tensors = [
        (a.controls.source_mix, b.controls.source_mix),
        (a.controls.own_mix, b.controls.own_mix),
    ]
    if a.blend is not None or b.blend is not None:
        assert a.blend is not None and b.blend is not None
        assert (a.blend.start, a.blend.threshold) == (b.blend.start, b.blend.threshold)
        tensors.append((a.blend.words, b.blend.words))
    return a.prompts == b.prompts and all(torch.equal(x, y) for x, y in tensors)


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ({"cross_replace": np.float32(0.7)}, {"cross_replace": 0.7}),
        ({"cross_replace": torch.tensor(0.7)}, {"cross_replace": 0.7}),
        ({"cross_replace": (np.int64(0), torch.tensor(0.7))}, {"cross_replace": (0, 0.7)}),
        (
            {"cross_replace": {"default_": 0.8, "tiger": np.float32(0.4)}},
            {"cross_replace": {"default_": 0.8, "tiger": 0.4}},
        ),
        ({"steps": np.int64(10)}, {}),
        ({"steps": torch.tensor(10)}, {}),
        ({"reweight": {"tiger": np.float32(2)}}, {"reweight": {"tiger": 2.0}}),
        ({"prompts": np.str_(TIGER)}, {}),
        ({"prompts": (TIGER,)}, {}),
        ({"blend": (("cat",), ("tiger",))}, {"blend": ("cat", "tiger")}),
        ({"blend": (["cat"], ["tiger"])}, {"blend": ("cat", "tiger")}),
        (
            {"blend": (("cat", "mirror"), ("tiger", "mirror"))},
            {"blend": ("cat, mirror", "tiger, mirror")},
        ),
        (
            {
                "blend": "mirror",
                "blend_start": np.float32(0.1),
                "blend_threshold": torch.tensor(0.4),
            },
            {"blend": "mirror", "blend_start": 0.1, "blend_threshold": 0.4},
        ),
    ],
    ids=lambda given: "-".join(given) or "plain",
)
def test_another_spelling_of_a_setting_is_the_setting(
    model: StableDiffusion, inversion: Inversion, given: dict[str, Any], plain: dict[str, Any]
) -> None:
    assert same(planned(model, inversion, **given), planned(model, inversion, **plain))


def test_scalars_serve_the_rest_of_an_edit(model: StableDiffusion, inversion: Inversion) -> None:
    plain = nti.edit(model, inversion, TIGER, guidance_scale=2.5, start=8, self_replace=0.7)
    for number, whole in ((np.float32, np.int64), (torch.tensor, torch.tensor)):
        other = nti.edit(
            model, inversion, TIGER, guidance_scale=number(2.5), start=whole(8),
            self_replace=number(0.7),
        )  # fmt: skip
        assert torch.equal(plain.latents, other.latents)


WRONG = {
    "none": None, "int": -3, "float": 2.5, "nan": float("nan"), "inf": float("inf"),
    "str": "dragon", "empty": "", "bytes": b"cat", "bool": True, "list": [], "nested": [[[]]],
    "numbers": [1, 2], "tuple": (), "triple": (1, 2, 3), "dict": {}, "odd": {3: "x"},
    "set": {"cat"}, "object": object(), "array": np.zeros(3), "tensor": torch.zeros(2, 2),
    "surrogate": "\ud800", "huge": 10**400,
}  # fmt: skip

Call = Callable[[StableDiffusion, Inversion, Any], object]

CALLS: dict[str, Call] = {
    "tokenizer": lambda m, i, x: EditPlan.create(x, i.prompt, TIGER, steps=10),
    "source": lambda m, i, x: EditPlan.create(m.tokenizer, x, TIGER, steps=10),
    **{
        name: lambda m, i, x, name=name: planned(m, i, **{name: x})
        for name in (
            "prompts", "mode", "cross_replace", "self_replace", "blend", "subtract", "reweight",
            "blend_start", "blend_threshold",
        )
    },
    "steps": lambda m, i, x: planned(m, i, steps=x),
    "window of a word": lambda m, i, x: planned(m, i, cross_replace={"tiger": x}),
    "factor": lambda m, i, x: planned(m, i, reweight={"tiger": x}),
    "blended pair": lambda m, i, x: planned(m, i, blend=("cat", x)),
    "list of a setting": lambda m, i, x: planned(m, i, blend=[x], reweight=[x]),
    "model": lambda m, i, x: nti.edit(x, i, TIGER),
    "inversion": lambda m, i, x: nti.edit(m, x, TIGER),
    "plan": lambda m, i, x: nti.edit_latents(m, i, x),
    **{
        name: lambda m, i, x, name=name: nti.edit(m, i, TIGER, **({"start": 9} | {name: x}))
        for name in ("guidance_scale", "negative_prompt", "start", "callback")
    },
    "hook": lambda m, i, x: nti.edit_latents(m, i, planned(m, i), start=9, hook=x),
    "align mode": lambda m, i, x: align(x, m.tokenizer.encode("a"), m.tokenizer.encode("b")),
    "align source": lambda m, i, x: align("auto", x, m.tokenizer.encode("b")),
    "word": lambda m, i, x: token_positions(m.tokenizer.encode("a cat"), x),
    "word asked for": lambda m, i, x: has_word(m.tokenizer.encode("a cat"), x),
    "maps": lambda m, i, x: self_attention_components(x, 1),
    "count": lambda m, i, x: self_attention_components(torch.zeros(2, 2, 4), x),
    "components": lambda m, i, x: component_grid(m, i, x),
    "model of maps": lambda m, i, x: average_attention(x, i),
    "inversion of maps": lambda m, i, x: average_attention(m, x),
    "plan of maps": lambda m, i, x: attention_grid(m, i, x),
    **{
        f"{name} of maps": lambda m, i, x, name=name: attention_grid(m, i, **{name: x})
        for name in ("level", "places", "block", "guidance_scale", "callback")
    },
    "kind of maps": lambda m, i, x: average_attention(m, i, kind=x),
    **{
        f"{name} of sdedit": lambda m, i, x, name=name: nti.sdedit(
            m, i, TIGER, **({"strength": 0.1} | {name: x})
        )
        for name in ("strength", "seed", "mix")
    },
    "mask": lambda m, i, x: nti.masked(m, i, TIGER, mask=x, strength=0),
    **{
        f"{name} of masked": lambda m, i, x, name=name: nti.masked(
            m, i, TIGER, mask=torch.eye(64), **({"strength": 0} | {name: x})
        )
        for name in ("mask_threshold", "original")
    },
    **{
        f"{name} of diffedit": lambda m, i, x, name=name: nti.diffedit(
            m, i, TIGER, **({"strength": 0, "noises": 1} | {name: x})
        )
        for name in ("noises", "mask_threshold", "mask_rule", "proximal")
    },
    **{
        f"{name} of masactrl": lambda m, i, x, name=name: begun(
            nti.masactrl, m, i, TIGER, **{name: x}
        )
        for name in ("steps_from", "layers_from")
    },
    **{
        f"{name} of sweep": lambda m, i, x, name=name: begun(
            nti.sweep, m, i, TIGER,
            **({"over": "reweight", "word": "tiger", "values": [1]} | {name: x}),
        )
        for name in ("over", "values", "word", "at_once", "cell")
    },
    "encoded": lambda m, i, x: m.tokenizer.encode(x),
    "prompts encoded": lambda m, i, x: m.encode_text([x]),
}  # fmt: skip


@pytest.fixture(scope="module")
def short(model: StableDiffusion) -> Inversion:
    return nti.generate(model, "a cat sitting next to a mirror", steps=10)


@pytest.mark.filterwarnings("ignore:edit. .* changes the picture by")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("value", WRONG.values(), ids=WRONG)
def test_what_is_no_setting_is_an_error_of_one_line(
    model: StableDiffusion, short: Inversion, value: object, call: Call
) -> None:
    """Some of it is one, and taken."""
    try:
        call(model, short, value)
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
        assert len(str(error)) < 1000
        assert "Traceback" not in str(error) and not re.search(r"NoneType|not iterable", str(error))


@pytest.mark.parametrize(
    ("call", "value", "message"),
    [
        ("reweight", {"words": ("tiger",), "values": (2.0,)},
         r"reweight\['words'\]: got \('tiger',\), expected a finite number: give a factor for each"
         r" word, such as \{'tiger': 2\.0\}"),
        ("reweight", 3, "reweight: got 3, expected a factor for each word"),
        ("blend", ("cat",), r"blend: got \('cat',\), expected words of both prompts, such as"),
        ("blend", [["cat"]], r"blend: got \['cat'\], expected words of both"),
        ("blend", "", "blend: got '', expected words"),
        ("blend", 0, "blend: got 0, expected words"),
        ("blend_start", "x", "blend_start: got 'x', expected a finite number"),
        ("cross_replace", True, r"cross_replace: got True, expected a number in \[0, 1\]"),
        ("cross_replace", {3: 0.5}, "cross_replace: got 3, expected a string"),
        ("mode", None, "mode: got None, expected one of auto, replace"),
        ("prompts", 5, "prompts: got 5, expected a string or a list of strings"),
        ("steps", 2.0, r"steps: got 2\.0, expected a whole number"),
        ("start", 1.5, r"start: got 1\.5, expected a whole number"),
        ("model", None, "model: got None, expected one of StableDiffusion"),
        ("plan", "x", "plan: got 'x', expected one of EditPlan"),
        ("callback", 3, "callback: got 3, expected a function or None"),
        ("hook", print, "hook: got .*, expected a MapHook"),
        ("negative_prompt", 3, "negative_prompt: got 3, expected a string"),
        ("level of maps", 0.0, r"level: got 0\.0, expected a whole number"),
        ("places of maps", 1, "places: got 1, expected a string or a list of strings"),
        ("maps", torch.full((2, 2, 4), torch.nan), "maps: got values that are not finite"),
    ],
)  # fmt: skip
def test_an_error_says_which_setting_and_what_was_expected(
    model: StableDiffusion, short: Inversion, call: str, value: object, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        CALLS[call](model, short, value)
