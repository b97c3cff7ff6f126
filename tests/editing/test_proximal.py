"""Proximal guidance."""

import pytest
import torch
from torch import Tensor

import nti
from nti import Inversion, Proximal, StableDiffusion
from nti.sampling.step import guided_noise
from tolerances import assert_close

W = 7.5
FREE = {"cross_replace": 0.0, "self_replace": 0.0}


def noises() -> tuple[Tensor, Tensor]:
    """Two edits' unconditional and conditional noise; the second's differ ten times as much."""
    g = torch.Generator().manual_seed(0)
    uncond, difference = torch.randn(2, 2, 4, 8, 8, generator=g, dtype=torch.float64)
    difference[1] *= 10
    return uncond, uncond + difference


@pytest.mark.parametrize("norm", ["l0", "l1"])
def test_the_ends_are_plain_guidance_and_none(norm: str) -> None:
    uncond, cond = noises()
    assert torch.equal(Proximal(norm, quantile=1.0).noise(uncond, cond, W), uncond)
    below_all = Proximal(norm, quantile=0.0).noise(uncond, cond, W)
    assert_close(below_all, guided_noise(uncond, cond, W))


@pytest.mark.parametrize("norm", ["l0", "l1"])
def test_each_edit_has_its_own_threshold(norm: str) -> None:
    uncond, cond = noises()
    together = Proximal(norm).noise(uncond, cond, W)
    for i in range(2):
        alone = Proximal(norm).noise(uncond[i : i + 1], cond[i : i + 1], W)
        assert torch.equal(together[i : i + 1], alone)
        share = (together[i] != uncond[i]).double().mean()
        assert share == pytest.approx(0.3, abs=0.01)


def test_what_is_not_guided_goes_back_to_the_source() -> None:
    uncond, cond = noises()
    cond[0] = uncond[0]
    cond[0, 1, 4, 4] += 1.0
    edits = torch.ones_like(uncond)
    source = torch.zeros_like(uncond[:1])
    proximal = Proximal(pull_below=400, radius=1)
    assert torch.equal(proximal.pulled(edits, source, uncond, cond, 400), edits)
    found = proximal.pulled(edits, source, uncond, cond, 399)[0]
    assert found.sum() == 9 and found[1, 3:6, 3:6].all()
    assert torch.equal(Proximal().pulled(edits, source, uncond, cond, 1), edits)


def test_an_edit_is_guided_less(model: StableDiffusion, inversion: Inversion) -> None:
    prompt = "a dog sitting next to a mirror"
    plain = nti.edit(model, inversion, prompt, **FREE)
    none = nti.edit(model, inversion, prompt, proximal=Proximal(quantile=0.0), **FREE)
    some = nti.edit(model, inversion, prompt, proximal=Proximal(), **FREE)
    pulled = nti.edit(model, inversion, prompt, proximal=Proximal(pull_below=1000), **FREE)
    source = inversion.latents[-1]

    def away(result: nti.EditResult) -> float:
        return float((result.latents[-1, 0] - source).norm())

    assert_close(none.latents, plain.latents)
    assert away(some) != pytest.approx(away(plain), rel=0.01)
    assert away(pulled) < away(some)


def test_two_edits_are_two_single_ones(model: StableDiffusion, inversion: Inversion) -> None:
    prompts = ["a dog sitting next to a mirror", "two cats"]
    together = nti.edit(model, inversion, prompts, proximal=Proximal("l1"))
    for i, prompt in enumerate(prompts):
        alone = nti.edit(model, inversion, prompt, proximal=Proximal("l1"))
        assert_close(together.latents[:, i], alone.latents[:, 0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "l2"}, "norm: got 'l2', expected one of l0, l1"),
        ({"quantile": 1.5}, "quantile: got 1.5"),
        ({"pull_below": -1}, "pull_below: got -1"),
        ({"radius": 65}, "radius: got 65"),
    ],
    ids=["norm", "quantile", "pull", "radius"],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Proximal(**settings)


def test_another_object_is_refused(model: StableDiffusion, inversion: Inversion) -> None:
    with pytest.raises(ValueError, match="proximal: got 'l0', expected one of Proximal"):
        nti.edit(model, inversion, "a dog", proximal="l0")
