"""UniTune: a rare word stands for the image."""

from typing import Any

import pytest
import torch

import nti
from fitting import error, weights_of
from nti import Inversion, StableDiffusion, UniTune, unitune
from nti.inversion.noised import draw
from nti.inversion.sampling import sample
from nti.sampling.schedule import noised

TIGER = "a tiger sitting next to a mirror"
FEW = {"iterations": 4, "learning_rate": 1e-2, "batch": 2}


@pytest.fixture(scope="module")
def short(model: StableDiffusion, image: torch.Tensor) -> Inversion:
    """An inversion without a trajectory: of it z_0 is enough."""
    return nti.invert(model, image, "a cat", steps=5, method="autoencoder", guidance_scale=3.0)


@pytest.fixture(scope="module")
def fitted(model: StableDiffusion, short: Inversion) -> UniTune:
    return UniTune.fit(model, short, **FEW)


def test_the_rare_word_alone_gives_the_image_the_better_the_longer_it_was_trained(
    model: StableDiffusion, short: Inversion
) -> None:
    errors = []
    for iterations in (0, 8, 24):
        fit = UniTune.fit(model, short, **FEW | {"iterations": iterations})
        errors += error(fit.edit_latents("", guidance_scale=1.0).latents, short)
    assert errors[2] < errors[1] < errors[0]


def test_only_the_cross_attention_learns(model: StableDiffusion, fitted: UniTune) -> None:
    before, after = weights_of(model), weights_of(fitted.model)
    differing = {name for name in before if not torch.equal(before[name], after[name])}
    assert differing == {name for name in before if ".cross_attention." in name}
    assert not any(weight.requires_grad for weight in fitted.model.unet.parameters())


def test_the_model_is_as_it_was(model: StableDiffusion, short: Inversion) -> None:
    before = weights_of(model)
    unitune(model, short, TIGER, **FEW)
    after = weights_of(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(weight.requires_grad for weight in model.unet.parameters())
    assert all(weight.grad is None for weight in model.unet.parameters())


@pytest.mark.parametrize(("strength", "start"), [(0.9, 1), (0.4, 3), (1.0, 0)])
def test_edits_are_sampled_from_the_image_under_noise(
    fitted: UniTune, strength: float, start: int
) -> None:
    found = fitted.edit_latents(["", TIGER], strength=strength, guidance_scale=4.0, seed=5)
    (noise,) = draw(torch.Generator().manual_seed(5), 1, fitted.latent)
    schedule = fitted.model.schedule(5)
    at = noised(fitted.latent, noise, schedule.alpha_bar[start]) if start else noise
    kept = slice(start, None)
    part = type(schedule)(
        schedule.timesteps[kept], schedule.alpha_bar[kept], schedule.alpha_bar_next[kept]
    )
    null = fitted.model.encode_text([""]).expand(part.steps, 1, -1, -1)
    for number, prompt in enumerate(("beikkpic", f"beikkpic {TIGER}")):
        cond = fitted.model.encode_text([prompt])
        expected = sample(fitted.model.steps, at, cond, null, part, 4.0)
        assert found.latents.shape == (6 - start, 2, 4, 8, 8)
        assert torch.allclose(found.latents[:, number], expected[:, 0], rtol=1e-9, atol=1e-9)


def test_the_inversions_guidance_is_the_default(fitted: UniTune) -> None:
    plain, three = (fitted.edit_latents(TIGER, guidance_scale=w).latents for w in (None, 3.0))
    assert torch.equal(plain, three)


def test_another_rare_word_is_another_model(
    model: StableDiffusion, short: Inversion, fitted: UniTune
) -> None:
    other = UniTune.fit(model, short, rare=" sks ", **FEW)
    assert other.rare == "sks" and fitted.rare == "beikkpic"
    assert not torch.equal(other.losses, fitted.losses)
    assert not torch.equal(other.edit_latents("").latents, fitted.edit_latents("").latents)


def test_a_seed_is_a_result(model: StableDiffusion, short: Inversion, fitted: UniTune) -> None:
    again, other = (UniTune.fit(model, short, **FEW, seed=seed) for seed in (0, 1))
    assert torch.equal(again.losses, fitted.losses)
    assert not torch.equal(other.losses, fitted.losses)
    first = fitted.edit_latents(TIGER).latents
    assert torch.equal(again.edit_latents(TIGER).latents, first)
    assert not torch.equal(fitted.edit_latents(TIGER, seed=1).latents, first)


def test_the_function_fits_once_and_samples_all(
    model: StableDiffusion, short: Inversion, fitted: UniTune
) -> None:
    heard: list[tuple[int, int]] = []
    result = unitune(
        model, short, [TIGER, "a dog"], **FEW, strength=0.7,
        callback=lambda *at: heard.append(at),
    )  # fmt: skip
    expected = fitted.edit([TIGER, "a dog"], strength=0.7)
    assert torch.equal(result.latents, expected.latents) and result.latents.shape[0] == 4
    assert len(result.images) == 2 and result.images[0].tobytes() != result.images[1].tobytes()
    assert result.source.tobytes() == nti.reconstruct(model, short).tobytes()
    assert result.masks is None
    assert heard == [(i + 1, 7) for i in range(7)]


@pytest.mark.parametrize("done", [2, 6], ids=["weights", "sampling"])
def test_true_stops_the_run(model: StableDiffusion, short: Inversion, done: int) -> None:
    with pytest.raises(nti.Stopped, match=f"after step {done} of 8"):
        unitune(model, short, TIGER, **FEW, callback=lambda at, _: at == done)


def test_any_inversion_will_do(model: StableDiffusion, inversion: Inversion) -> None:
    for each in (inversion, nti.generate(model, "a cat", steps=2)):
        fit = UniTune.fit(model, each, iterations=1, batch=1)
        assert torch.equal(fit.latent, each.pivot[-1:])
        assert (fit.steps, fit.guidance_scale) == (each.steps, each.guidance_scale)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": []}, "prompts: got none"),
        ({"prompts": 3}, "prompts: got 3"),
        ({"inversion": None}, "inversion: got None"),
        ({"rare": "  "}, "rare: got no word"),
        ({"rare": None}, "rare: got None"),
        ({"iterations": -1}, "iterations: got -1"),
        ({"iterations": "few"}, "iterations: got 'few'"),
        ({"batch": 0}, "batch: got 0"),
        ({"learning_rate": -1.0}, "learning_rate: got -1.0"),
        ({"strength": 0.1}, "strength: got 0.1 of 5 steps"),
        ({"strength": 2}, "strength: got 2"),
        ({"guidance_scale": "much"}, "guidance_scale: got 'much'"),
        ({"seed": -1}, "seed: got -1"),
        ({"callback": 3}, "callback: got 3"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_what_does_not_fit_is_an_error_before_the_work(
    model: StableDiffusion, short: Inversion, settings: dict[str, Any], message: str
) -> None:
    heard: list[int] = []
    given = {"inversion": short, "prompts": TIGER, "callback": lambda *_: heard.append(1)}
    with pytest.raises(ValueError, match=message) as error:
        unitune(model, **given | FEW | settings)
    assert "\n" not in str(error.value) and not heard


def test_latents_that_overflow_name_the_step(fitted: UniTune) -> None:
    with pytest.raises(nti.NotFiniteError, match=r"edit at timestep \d+: .* torch.float64"):
        fitted.edit_latents(TIGER, guidance_scale=1e308)
