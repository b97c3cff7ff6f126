"""What comes before the prompt is computed once for several prompts, to the same bits."""

import dataclasses

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
    # Beside the pivot's three once a timestep, in each of two sweeps and the one that samples.
    [("null-text", 3 + 3), ("null-text-fast", 3 + 3), ("null-text-global", 3 + 9)],
)
def test_a_timestep_begins_once(image: Tensor, method: str, expected: int) -> None:
    model = make_model()
    beginnings = count_beginnings(model)
    settings = {} if method == "null-text-fast" else {"inner_steps": 2}
    invert(model, image, "a cat", method=method, steps=3, **settings)
    assert len(beginnings) == expected


def test_a_noise_that_cannot_begin_is_given_the_latents() -> None:
    latent = torch.zeros(1)
    assert begin(lambda latent, timestep, context: latent, latent, torch.tensor(1)) is latent
