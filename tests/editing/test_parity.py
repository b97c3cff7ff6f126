"""Whole edits of ten steps against the reference, which has every map in memory: what each
attention layer gives at every step, the masks, and the latents at every step.

Windows, factors and blend words are written out here by step and token, from the published rules;
the mapping M is the package's, which test_alignment.py writes out.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from nti import Inversion, StableDiffusion, edit, generate, invert
from nti.editing.reference import MapEdit, edit_reference
from nti.networks.attention import CrossAttention, SelfAttention
from tolerances import assert_close, relative_error

STEPS = 10
CAT = "a cat sitting next to a mirror"
TIGER = "a tiger sitting next to a mirror"
SMALL = "a small cat sitting next to a mirror"
CAPYBARA = "a capybara sitting next to a mirror"  # three tokens: 2, 3, 4
ALL = range(77)


@dataclass(frozen=True)
class Case:
    """An edit, and what it means by edit, token and step."""

    prompts: Sequence[str]
    settings: Mapping[str, Any]
    cross: Sequence[tuple[int, Sequence[int], range]]
    """(edit, tokens, steps of their window); a later entry overrides an earlier one."""
    injected: range = range(4)
    factors: Mapping[tuple[int, int], float] = field(default_factory=dict)
    """(edit, token): factor."""
    blend: Sequence[Sequence[int]] = ()
    """Tokens of the source's blend words, then of each edit's."""
    subtract: Sequence[Sequence[int]] = ()
    source: str = CAT
    start: int = 0
    size: tuple[int, int] = (64, 64)
    """(height, width) in pixels."""

    def map_edit(self, model: StableDiffusion, alignments: Sequence[Any]) -> MapEdit:
        alpha = torch.zeros(STEPS, len(self.prompts), 77, dtype=torch.float64)
        for edited, tokens, steps in self.cross:
            alpha[:, edited, list(tokens)] = 0.0
            alpha[steps.start : steps.stop, edited, list(tokens)] = 1.0
        equalizer = torch.ones(len(self.prompts), 77, dtype=torch.float64)
        for place, factor in self.factors.items():
            equalizer[place] = factor
        words = [_columns(rows) if rows else None for rows in (self.blend, self.subtract)]
        config = model.config.unet
        return MapEdit(config, alignments, alpha, equalizer, self.injected, *words)


def _columns(rows: Sequence[Sequence[int]]) -> Tensor:
    columns = torch.zeros(len(rows), 77, dtype=torch.float64)
    for column, tokens in zip(columns, rows, strict=True):
        column[list(tokens)] = 1.0
    return columns


BLEND = {"blend": ("cat", "tiger"), "subtract": "mirror", "cross_replace": 0.6}
CASES = {
    "replace": Case([TIGER], {"mode": "replace"}, [(0, ALL, range(8))]),
    "replace-1-to-3-tokens": Case([CAPYBARA], {"mode": "replace"}, [(0, ALL, range(8))]),
    "replace-3-to-1-tokens": Case(
        [TIGER], {"mode": "replace"}, [(0, ALL, range(8))], source=CAPYBARA
    ),
    "replace-3-to-2-tokens": Case(
        ["an armadillo sitting next to a mirror"],
        {"mode": "replace"},
        [(0, ALL, range(8))],
        source=CAPYBARA,
    ),
    "refine": Case([SMALL], {"mode": "refine", "cross_replace": 0.4}, [(0, ALL, range(4))]),
    "refine-3-to-1-tokens": Case(
        [SMALL], {"mode": "refine", "cross_replace": 0.4}, [(0, ALL, range(4))], source=CAPYBARA
    ),
    "refine+reweight": Case(
        [SMALL],
        {"mode": "refine", "cross_replace": 0.5, "reweight": {"small": 3.0, "mirror": -1.0}},
        [(0, ALL, range(5))],
        factors={(0, 2): 3.0, (0, 8): -1.0},
    ),
    "reweight": Case(
        [CAT],
        {"mode": "reweight", "cross_replace": 1.0, "reweight": {"cat": 4.0}},
        [(0, ALL, range(10))],
        factors={(0, 2): 4.0},
    ),
    "reweight-3-tokens": Case(
        [CAPYBARA],
        {"mode": "replace", "cross_replace": 0.7, "reweight": {"capybara": 2.0}},
        [(0, ALL, range(7))],
        factors={(0, 2): 2.0, (0, 3): 2.0, (0, 4): 2.0},
    ),
    "word-windows": Case(
        [CAPYBARA],
        {"mode": "replace", "cross_replace": {"capybara": (0.2, 0.6), "mirror": 0.3}},
        [(0, ALL, range(10)), (0, (2, 3, 4), range(2, 6)), (0, (9,), range(3))],
    ),
    "windows-open-inside": Case(
        [TIGER],
        {"mode": "replace", "cross_replace": (0.3, 0.7), "self_replace": (0.2, 0.6)},
        [(0, ALL, range(3, 7))],
        injected=range(2, 6),
    ),
    "three-edits": Case(
        [TIGER, SMALL, CAPYBARA],
        {
            "mode": ["replace", "refine", "auto"],
            "cross_replace": [0.3, 0.9, {"default_": 0.5, "capybara": 0.2}],
            "reweight": [{"tiger": 2.0}, None, None],
        },
        [
            *((0, ALL, range(3)), (1, ALL, range(9))),
            *((2, ALL, range(5)), (2, (2, 3, 4), range(2))),
        ],
        factors={(0, 2): 2.0},
    ),
    "blend-subtract": Case(
        [TIGER], BLEND, [(0, ALL, range(6))], blend=[(2,), (2,)], subtract=[(7,), (7,)]
    ),
    "blend-two-edits-multi-token": Case(
        [CAPYBARA, SMALL],
        {
            "blend": [("cat", "capybara"), "cat"],
            "subtract": "mirror",
            "cross_replace": 0.6,
        },
        [(0, ALL, range(6)), (1, ALL, range(6))],
        blend=[(2,), (2, 3, 4), (3,)],
        subtract=[(7,), (9,), (8,)],
    ),
    "blend-from-a-start": Case(
        [TIGER], BLEND, [(0, ALL, range(6))], blend=[(2,), (2,)], subtract=[(7,), (7,)], start=4
    ),
    "blend-not-square": Case(
        [TIGER],
        BLEND,
        [(0, ALL, range(6))],
        blend=[(2,), (2,)],
        subtract=[(7,), (7,)],
        size=(48, 80),
    ),
}


@pytest.fixture(scope="module")
def inversions(model: StableDiffusion) -> Any:
    """One plain inversion for each source and size."""
    made: dict[tuple[str, tuple[int, int]], Inversion] = {}

    def inversion_of(case: Case) -> Inversion:
        key = (case.source, case.size)
        if key not in made:
            noise = torch.rand(3, *case.size, generator=torch.Generator().manual_seed(1))
            made[key] = invert(
                model,
                noise.double() * 2 - 1,
                case.source,
                steps=STEPS,
                guidance_scale=3.0,
                method="ddim",
            )
        return made[key]

    return inversion_of


@contextmanager
def layers_of(model: StableDiffusion) -> Iterator[list[Tensor]]:
    """Gather what every attention layer gives, in the order of the calls."""
    found: list[Tensor] = []

    def keep(module: object, inputs: object, out: Any) -> None:
        found.append(out[0] if isinstance(out, tuple) else out)

    layers = [m for m in model.unet.modules() if isinstance(m, SelfAttention | CrossAttention)]
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    yield found
    for hook in hooks:
        hook.remove()


def test_the_reference_runs_in_float32_on_the_embedded_model(embedded: StableDiffusion) -> None:
    """With words to subtract alone, and tensors of float64, as a plan gives them."""
    source, edited = "a red circle and a blue star on wood", "a red circle and a blue heart on wood"
    inversion = generate(embedded, source, seed=1, steps=4)
    result = edit(embedded, inversion, edited, subtract="circle", replay=False, self_replace=0.25)
    windows = torch.ones(4, 1, 77, dtype=torch.float64)
    maps = MapEdit(
        embedded.config.unet, result.alignments, windows, torch.ones(1, 77).double(), range(1),
        subtract=_columns([[3], [3]]),
    )  # fmt: skip
    found = edit_reference(embedded, inversion, [edited], maps)
    assert maps.masks and not all(mask.all() for mask in maps.masks)
    assert relative_error(found[:, 1], result.latents[:, 0]) < 1e-4


def published_rows(rows: int, edits: int) -> list[int]:
    """Return which rows of the published batch a batch of this many rows holds."""
    free, sourced = list(range(1, edits + 1)), list(range(edits + 1, 2 * edits + 2))
    kept = {
        2 * edits: free + sourced[1:],
        2 * edits + 1: free + sourced,
        2 * edits + 2: [0, *free, *sourced],
    }
    return kept[rows]


@pytest.mark.filterwarnings("ignore:local blend")  # of a last mask that is empty
@pytest.mark.parametrize("replay", [True, False], ids=["replay", "published"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_an_edit_is_the_published_one_layer_by_layer_and_step_by_step(
    model: StableDiffusion,
    inversions: Any,
    case: Case,
    replay: bool,
) -> None:
    inversion = inversions(case)
    settings = {"cross_replace": 0.8, "self_replace": 0.4, **case.settings}
    with layers_of(model) as layers:
        result = edit(model, inversion, case.prompts, replay=replay, start=case.start, **settings)
    maps = case.map_edit(model, result.alignments)
    with layers_of(model) as published_layers:
        expected = edit_reference(model, inversion, case.prompts, maps, start=case.start)
    assert len(layers) == len(published_layers) == 14 * (STEPS - case.start)
    for found, published in zip(layers, published_layers, strict=True):
        assert_close(found, published[published_rows(len(found), len(case.prompts))])
    for found, published in zip(result.latents, expected[:, 1:], strict=True):
        assert_close(found, published)
    if case.blend:
        assert result.masks is not None
        blended = result.masks[-len(maps.masks) :]
        assert torch.equal(blended, torch.stack(maps.masks)[:, 1:])
        for mask in blended.unbind(dim=1):
            assert mask.any() and not mask.all(), "a mask of one value tests nothing"
    else:
        assert not torch.allclose(result.latents[-1, 0], inversion.latents[-1], rtol=1e-3)
