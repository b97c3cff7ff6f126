"""Averaged maps of the source and of edits, and the components of self-attention."""

import pytest
import torch

import nti
from nti import EditPlan, Inversion, StableDiffusion
from nti.editing.attention_maps import average_attention, self_attention_components
from nti.networks.control import MapCollector
from nti.sampling.step import controlled_noise
from tolerances import assert_close

TIGER = "a tiger sitting next to a mirror"


@pytest.mark.parametrize(
    ("kind", "level", "places"),
    [("cross", 0, ("down", "up")), ("cross", 1, ("middle",)), ("self", 1, ("up",))],
)
def test_the_source_is_averaged_over_steps_heads_and_sites(
    model: StableDiffusion, inversion: Inversion, kind: str, level: int, places: tuple[str, ...]
) -> None:
    found = average_attention(model, inversion, kind=kind, level=level, places=places)
    cond = model.encode_text([inversion.prompt])
    total, count = torch.zeros(()), 0
    for i, t in enumerate(model.schedule(10).timesteps):
        seen = MapCollector(frozenset({kind}), frozenset({level}), frozenset(places))
        controlled_noise(
            model.unet, inversion.latents[i : i + 1], torch.tensor(t), cond, None, seen
        )
        for each in seen.maps:
            total, count = total + each.probabilities[0].mean(dim=0), count + 1
    side = 8 >> level
    assert found.shape == (1, side, side, 77 if kind == "cross" else side * side)
    assert_close(found.flatten(1, 2)[0], (total / count).float())
    assert_close(found.sum(dim=-1), torch.ones(1, side, side))


def test_the_maps_of_an_edit_are_those_after_it(
    model: StableDiffusion, inversion: Inversion
) -> None:
    """Replaced for the whole time, the new word's map is the old one's."""
    plan = EditPlan.create(model.tokenizer, inversion.prompt, TIGER, steps=10, cross_replace=1.0)
    source, edited = average_attention(model, inversion, plan)
    assert_close(edited, source)
    free = EditPlan.create(model.tokenizer, inversion.prompt, TIGER, steps=10, cross_replace=0.0)
    source_again, own = average_attention(model, inversion, free)
    assert_close(source_again, source)
    assert not torch.allclose(own, source, rtol=1e-2)
    assert_close(average_attention(model, inversion)[0], source)


def test_components_are_those_of_the_centred_maps() -> None:
    """Two halves that attend to themselves alone: the first component tells them apart."""
    half = torch.arange(16).view(4, 4) % 4 < 2
    block = (half.flatten()[:, None] == half.flatten()[None, :]).float()
    maps = (block / block.sum(dim=1, keepdim=True)).unflatten(0, (4, 4))
    (first, _) = self_attention_components(maps, 2)
    assert first[half].std() < 1e-6 and first[~half].std() < 1e-6
    assert (first[half].mean() - first[~half].mean()).abs() > 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"level": 7},
            "got cross at level 7 of down, up, expected cross or self at one of",
        ),
        ({"places": ("left",)}, "of left, expected"),
        ({"kind": "both"}, "got both at level 0"),
        ({"level": 0, "places": ("middle",)}, "level 0 of middle"),
        ({"level": 0, "places": ("up",), "block": 2}, r"of up, block 2, .* up 0 \(2\)"),
        ({"block": -1}, "block -1"),
    ],
)
def test_sites_that_are_not_there_are_named(
    model: StableDiffusion, inversion: Inversion, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        nti.average_attention(model, inversion, **settings)


def test_guidance_is_that_of_the_edits(model: StableDiffusion, inversion: Inversion) -> None:
    plan = EditPlan.create(model.tokenizer, inversion.prompt, TIGER, steps=10, cross_replace=0.0)
    plain = average_attention(model, inversion, plan)
    other = average_attention(model, inversion, plan, guidance_scale=1.0)
    assert_close(other[0], plain[0])
    assert not torch.allclose(other[1], plain[1], rtol=1e-2)
    with pytest.raises(ValueError, match="guidance_scale: got 1.0 without a plan, expected None"):
        average_attention(model, inversion, guidance_scale=1.0)


def test_components_need_maps_among_positions() -> None:
    with pytest.raises(ValueError, match=r"got \(4, 4, 77\), expected \(h, w, h \* w\)"):
        self_attention_components(torch.zeros(4, 4, 77), 1)
    for count in (0, 17):
        with pytest.raises(ValueError, match=f"components: got {count}, expected 1 to 16"):
            self_attention_components(torch.zeros(4, 4, 16), count)


def test_blocks_add_up_to_their_place(model: StableDiffusion, inversion: Inversion) -> None:
    both = average_attention(model, inversion, places=("up",))
    one, two = (average_attention(model, inversion, places=("up",), block=b) for b in (0, 1))
    assert_close((one + two) / 2, both)
    assert not torch.allclose(one, two, rtol=1e-2)
