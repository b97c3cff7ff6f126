"""What comes before the prompt is computed once for several prompts, to the same bits."""

import dataclasses
import functools

import pytest
import torch
from torch import Tensor

from nti import StableDiffusion, invert
from nti.config import ModelConfig
from nti.sampling.step import Begun, IterationInputs, begin, null_text_iteration
from tiny import INPAINTING, SD_LIKE, TINY, V_TINY, make_model

NO_FINE_ATTENTION = dataclasses.replace(
    TINY, unet=dataclasses.replace(TINY.unet, attention_levels=(1,), word_map_level=1)
)
CONFIGS = {
    "tiny": TINY,
    "two blocks a level": SD_LIKE,
    "v-prediction": V_TINY,
    "inpainting": INPAINTING,
    "no attention at the finest level": NO_FINE_ATTENTION,
}


def count_beginnings(model: StableDiffusion) -> list[None]:
    """Return a list that grows with every beginning that is computed."""
    found: list[None] = []
    model.unet.conv_in.register_forward_hook(lambda *_: found.append(None))
    return found


def point(model: StableDiffusion) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    channels = model.config.unet.input_channels
    return torch.randn(2, channels, 8, 8, generator=g, dtype=torch.float64), torch.tensor(501)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("recompute", [False, True], ids=["", "recompute"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_noise_is_the_same(config: ModelConfig, recompute: bool, dtype: torch.dtype) -> None:
    model = make_model(config, dtype, recompute=recompute)
    noise, (latent, t) = model.steps.noise, point(model)
    contexts = model.encode_text(["a cat", "a dog"]), model.encode_text(["", "a tree"])
    begun = begin(noise, latent, t)
    assert isinstance(begun, Begun)
    beginnings = count_beginnings(model)
    found = [noise(begun, t, context) for context in contexts]
    assert not beginnings
    assert not torch.equal(found[0], found[1])
    for eps, context in zip(found, contexts, strict=True):
        assert torch.equal(eps, noise(latent, t, context))


@pytest.mark.parametrize("recompute", [False, True], ids=["", "recompute"])
def test_an_iteration_is_the_same(recompute: bool) -> None:
    model = make_model(recompute=recompute)
    noise, (latent, _) = model.steps.noise, point(model)
    schedule = model.schedule(10)
    x = IterationInputs.first(
        model.encode_text(["", ""]), latent, schedule, 3, eps_cond=torch.zeros_like(latent),
        target=latent.flip(0), guidance_scale=3.0, learning_rate=0.1,
    )  # fmt: skip
    plain = null_text_iteration(noise, x)
    begun = begin(noise, latent, schedule.timestep(3, latent))
    beginnings = count_beginnings(model)
    made = null_text_iteration(noise, dataclasses.replace(x, begun=begun))
    assert not beginnings
    assert torch.equal(made.uncond, plain.uncond)
    assert torch.equal(made.losses, plain.losses)
    assert torch.equal(made.adam.mean, plain.adam.mean)


@pytest.mark.parametrize(
    ("method", "expected"),
    # Three for the pivot, and three for all that is done at its timesteps. The global embedding
    # makes two sweeps over these, and one that samples.
    [("null-text", 3 + 3), ("null-text-fast", 3 + 3), ("null-text-global", 3 + 9)],
)
def test_a_timestep_begins_once(image: Tensor, method: str, expected: int) -> None:
    model = make_model()
    beginnings = count_beginnings(model)
    settings = {} if method == "null-text-fast" else {"inner_steps": 2}
    invert(model, image, "a cat", method=method, steps=3, **settings)
    assert len(beginnings) == expected


def test_by_onednn_noise_and_gradients_are_the_same(any_size: None) -> None:
    """A gradient goes through what was begun, to the latent as well."""
    model = make_model(SD_LIKE, torch.float32, backend="onednn")
    noise, (z, t) = model.steps.noise, point(model)
    context = model.encode_text(["a cat", "a dog"]).requires_grad_()
    latent = z.float().requires_grad_()
    found = []
    for at in (latent, begin(noise, latent, t)):
        eps = noise(at, t, context)
        found.append((eps, *torch.autograd.grad(eps.square().sum(), (latent, context))))
    for plain, begun in zip(*found, strict=True):
        assert torch.equal(plain, begun)
        assert plain.norm() > 0


def test_another_function_beside_it_is_given_the_latents(image: Tensor) -> None:
    """Also one that wraps the model's own noise and has taken over its attributes."""
    model = make_model()
    seen: list[Tensor] = []

    @functools.wraps(model.steps.noise)
    def noise(latent: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        seen.append(latent)
        return model.steps.noise(latent, timestep, context)

    iteration = functools.partial(null_text_iteration, noise)
    steps = dataclasses.replace(model.steps, noise=noise, null_text_iteration=iteration)
    parts = (model.config, model.unet, model.vae, model.text, model.tokenizer)
    settings = {"steps": 2, "inner_steps": 1}
    found = invert(StableDiffusion(*parts, steps), image, "a cat", **settings)
    assert seen
    assert all(isinstance(each, Tensor) for each in seen)
    assert torch.equal(found.uncond, invert(model, image, "a cat", **settings).uncond)


def test_a_noise_that_cannot_begin_is_given_the_latents() -> None:
    latent = torch.zeros(1)
    assert begin(lambda latent, timestep, context: latent, latent, torch.tensor(1)) is latent
