"""Imagic: between the image's embedding and the prompt's, by a model that has learned the image."""

import dataclasses
from typing import Any

import pytest
import torch

import nti
from fitting import error, loss_of, weights_of
from nti import Imagic, Inversion, StableDiffusion, imagic
from nti.demo import sample_image
from nti.editing.fine_tune import all_timesteps, noise_loss
from nti.inversion.noised import draw
from nti.inversion.sampling import sample

TIGER = "a tiger sitting next to a mirror"
FEW = {
    "embedding_steps": 8, "embedding_learning_rate": 1e-2,
    "model_steps": 4, "model_learning_rate": 1e-3,
}  # fmt: skip


@pytest.fixture(scope="module")
def short(model: StableDiffusion, image: torch.Tensor) -> Inversion:
    """An inversion without a trajectory: of it z_0 is enough."""
    return nti.invert(model, image, "a cat", steps=3, method="autoencoder", guidance_scale=3.0)


@pytest.fixture(scope="module")
def fitted(model: StableDiffusion, short: Inversion) -> Imagic:
    return Imagic.fit(model, short, TIGER, **FEW)


def test_eta_leads_from_the_image_to_the_prompt(embedded: StableDiffusion) -> None:
    picture = sample_image("purple-circle")
    method = {"method": "autoencoder", "steps": 5}
    inversion = nti.invert(embedded, picture, "a purple circle on snow", **method)
    fit = Imagic.fit(
        embedded, inversion, "a green star on grass", embedding_steps=10,
        embedding_learning_rate=3e-2, model_steps=5, model_learning_rate=1e-4,
    )  # fmt: skip
    at_image, between, at_prompt = error(fit.edit_latents([0, 0.5, 1]).latents, inversion)
    assert at_image < between < at_prompt


def test_stage_1_finds_an_embedding_that_predicts_the_noise_better(
    model: StableDiffusion, fitted: Imagic
) -> None:
    """By the model as it was, and by noises that were not drawn in training."""
    assert torch.equal(fitted.target, model.encode_text([TIGER]))
    losses = [loss_of(model, fitted.latent, c) for c in (fitted.target, fitted.optimized)]
    assert losses[1] < losses[0] - 0.01
    assert fitted.embedding_losses.shape == (8,)


def test_stage_2_lowers_the_loss_at_the_embedding_that_was_found(
    model: StableDiffusion, fitted: Imagic
) -> None:
    before, after = (
        loss_of(each, fitted.latent, fitted.optimized) for each in (model, fitted.model)
    )
    assert after < before - 0.01
    assert fitted.model_losses.shape == (4,)
    drawn = torch.Generator().manual_seed(0)
    torch.randint(999, (8,), generator=drawn)
    draw(drawn, 8, fitted.latent)
    index = int(torch.randint(999, (), generator=drawn))
    (eps,) = draw(drawn, 1, fitted.latent)
    given = fitted.latent, fitted.optimized, all_timesteps(model), index, eps
    assert torch.allclose(noise_loss(model.unet, *given), fitted.model_losses[0], rtol=1e-10)
    changed = weights_of(model)
    assert not any(torch.equal(changed[k], v) for k, v in weights_of(fitted.model).items())


def test_the_model_is_as_it_was(model: StableDiffusion, short: Inversion) -> None:
    before = weights_of(model)
    imagic(model, short, TIGER, **FEW)
    after = weights_of(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(weight.requires_grad for weight in model.unet.parameters())
    assert all(weight.grad is None for weight in model.unet.parameters())


def test_edits_are_sampled_from_noise_between_the_two_embeddings(fitted: Imagic) -> None:
    found = fitted.edit_latents([0.3, 1.2], guidance_scale=4.0, seed=5)
    (noise,) = draw(torch.Generator().manual_seed(5), 1, fitted.latent)
    null = fitted.model.encode_text([""]).expand(3, 1, -1, -1)
    for number, eta in enumerate((0.3, 1.2)):
        mixed = eta * fitted.target + (1 - eta) * fitted.optimized
        schedule = fitted.model.schedule(3)
        expected = sample(fitted.model.steps, noise, mixed, null, schedule, 4.0)
        assert found.latents.shape == (4, 2, 4, 8, 8)
        assert torch.allclose(found.latents[:, number], expected[:, 0], rtol=1e-9, atol=1e-9)


def test_a_seed_is_a_result(model: StableDiffusion, short: Inversion, fitted: Imagic) -> None:
    again, other = (Imagic.fit(model, short, TIGER, **FEW, seed=seed) for seed in (0, 1))
    assert torch.equal(again.optimized, fitted.optimized)
    assert not torch.equal(other.optimized, fitted.optimized)
    first = fitted.edit_latents().latents
    assert torch.equal(again.edit_latents().latents, first)
    assert not torch.equal(fitted.edit_latents(seed=1).latents, first)


def test_the_function_fits_each_prompt_and_samples_it(
    model: StableDiffusion, short: Inversion, fitted: Imagic
) -> None:
    prompts = ["a dog", TIGER]
    heard: list[tuple[int, int]] = []
    result = imagic(model, short, prompts, eta=0.4, **FEW, callback=lambda *at: heard.append(at))
    assert torch.equal(result.latents[:, 1:], fitted.edit_latents(0.4).latents)
    assert len(result.images) == 2 and result.images[0].tobytes() != result.images[1].tobytes()
    assert result.source.tobytes() == nti.reconstruct(model, short).tobytes()
    assert result.masks is None
    assert heard == [(i + 1, 30) for i in range(30)]
    one = fitted.edit([0.4])
    assert one.images[0].tobytes() == result.images[1].tobytes()


@pytest.mark.parametrize("done", [3, 10, 14], ids=["embedding", "weights", "sampling"])
def test_true_stops_the_run(model: StableDiffusion, short: Inversion, done: int) -> None:
    with pytest.raises(nti.Stopped, match=f"after step {done} of 15"):
        imagic(model, short, TIGER, **FEW, callback=lambda at, _: at == done)


def test_any_inversion_will_do(model: StableDiffusion, inversion: Inversion) -> None:
    made = nti.generate(model, "a cat", steps=2)
    for each in (inversion, made):
        fit = Imagic.fit(model, each, TIGER, embedding_steps=1, model_steps=1)
        assert torch.equal(fit.latent, each.pivot[-1:]) and fit.steps == each.steps
        spoilt = dataclasses.replace(each, latents=each.latents * 0)
        other = Imagic.fit(model, spoilt, TIGER, embedding_steps=1, model_steps=1)
        assert torch.equal(other.optimized, fit.optimized)


def test_without_training_it_is_the_model(model: StableDiffusion, short: Inversion) -> None:
    fit = Imagic.fit(model, short, TIGER, embedding_steps=0, model_steps=0)
    assert torch.equal(fit.optimized, fit.target)
    assert fit.embedding_losses.shape == fit.model_losses.shape == (0,)
    assert torch.equal(fit.edit_latents(0.2).latents, fit.edit_latents(0.7).latents)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": []}, "prompts: got none"),
        ({"prompts": 3}, "prompts: got 3"),
        ({"inversion": None}, "inversion: got None"),
        ({"eta": "much"}, "eta: got 'much'"),
        ({"eta": [0.1]}, r"eta: got \[0.1\]"),
        ({"guidance_scale": None}, "guidance_scale: got None"),
        ({"embedding_steps": -1}, "embedding_steps: got -1"),
        ({"embedding_steps": 1.5}, "embedding_steps: got 1.5"),
        ({"model_steps": "few"}, "model_steps: got 'few'"),
        ({"embedding_learning_rate": -1.0}, "embedding_learning_rate: got -1.0"),
        ({"model_learning_rate": torch.nan}, "model_learning_rate: got nan"),
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
        imagic(model, **given | FEW | settings)
    assert "\n" not in str(error.value) and not heard


def test_an_edit_of_no_eta_is_an_error(fitted: Imagic) -> None:
    with pytest.raises(ValueError, match="eta: got none"):
        fitted.edit([])
