import dataclasses
from typing import Any

import pytest
import torch

from nti import Inversion, StableDiffusion, invert, masactrl
from nti.execution.leaves import shape_key, tensors
from nti.inversion.sampling import sample
from nti.networks.control import AttentionControl, MapCollector
from nti.sampling.step import controlled_noise
from tiny import SD_LIKE, make_model
from tolerances import assert_close, relative_error

TIGER = "a tiger sitting next to a mirror"
SMALL = "a small cat sitting next to a mirror"


def plain(model: StableDiffusion, inversion: Inversion, prompt: str) -> torch.Tensor:
    return sample(
        model.steps, inversion.latents[:1], model.encode_text([prompt]), inversion.uncond[:, None],
        model.schedule(inversion.steps), inversion.guidance_scale,
    )  # fmt: skip


@pytest.mark.parametrize("one_layout", [False, True], ids=["2E-rows", "one-layout"])
def test_from_the_last_step_on_it_is_plain_sampling(
    model: StableDiffusion, inversion: Inversion, one_layout: bool
) -> None:
    steps = dataclasses.replace(model.steps, one_layout=one_layout)
    model = StableDiffusion(model.config, model.unet, model.vae, model.text, model.tokenizer, steps)
    result = masactrl(model, inversion, [TIGER, SMALL], steps_from=1.0)
    for i, prompt in enumerate([TIGER, SMALL]):
        assert_close(result.latents[:, i], plain(model, inversion, prompt)[:, 0])


def test_one_graph_serves_steps_before_and_after_sharing_begins(
    model: StableDiffusion, inversion: Inversion
) -> None:
    keys = []

    def recorded(*arguments: Any) -> Any:
        keys.append(shape_key(tensors(arguments)))
        return model.steps.controlled_noise(*arguments)

    steps = dataclasses.replace(model.steps, controlled_noise=recorded, one_layout=True)
    other = StableDiffusion(model.config, model.unet, model.vae, model.text, model.tokenizer, steps)
    latents = masactrl(other, inversion, TIGER, steps_from=0.4).latents
    assert len(keys) == 10 and len(set(keys)) == 1
    assert_close(latents, masactrl(model, inversion, TIGER, steps_from=0.4).latents)


def test_no_layer_is_plain_sampling_and_every_layer_is_not(
    model: StableDiffusion, inversion: Inversion
) -> None:
    assert model.unet.self_attentions == 7
    expected = plain(model, inversion, TIGER)
    assert_close(masactrl(model, inversion, TIGER, layers_from=7).latents, expected)
    found = [masactrl(model, inversion, TIGER, layers_from=n).latents for n in (0, 4, 5, 6)]
    assert torch.equal(masactrl(model, inversion, TIGER).latents, found[1]), "10 of 16, 4 of 7"
    for latents in found:
        assert relative_error(latents, expected) > 1e-5
    assert relative_error(found[1], found[2]) > 1e-4


def test_sharing_begins_at_its_step(model: StableDiffusion, inversion: Inversion) -> None:
    expected = plain(model, inversion, TIGER)
    latents = masactrl(model, inversion, TIGER, steps_from=0.4).latents
    assert_close(latents[:5], expected[:5])
    assert relative_error(latents[5], expected[5]) > 1e-5


def test_the_same_prompt_stays_on_the_trajectory(
    model: StableDiffusion, inversion: Inversion
) -> None:
    latents = masactrl(model, inversion, inversion.prompt).latents
    assert_close(latents[:, 0], inversion.latents)


def test_edits_of_one_batch_equal_edits_alone(model: StableDiffusion, inversion: Inversion) -> None:
    both = masactrl(model, inversion, [TIGER, SMALL])
    for i, prompt in enumerate([TIGER, SMALL]):
        assert_close(both.latents[:, i], masactrl(model, inversion, prompt).latents[:, 0])


def test_layers_are_counted_as_data_passes_them() -> None:
    """A layer's output is the source's where its keys and values are, and none before it."""
    model = make_model(SD_LIKE)
    assert model.unet.self_attentions == 16
    g = torch.Generator().manual_seed(1)
    latent = torch.randn(2, 4, 8, 8, generator=g, dtype=torch.float64)
    context = model.encode_text(["a cat", "a dog"])
    rows = torch.tensor([[0, 1]]).repeat(16, 1)
    rows[10, 1] = 0
    t = torch.tensor(501)
    maps = []
    for control in (None, AttentionControl(value_rows=rows)):
        collector = MapCollector(kinds=frozenset({"self"}))
        controlled_noise(model.unet, latent, t, context, control, collector)
        maps.append([each.probabilities for each in collector.maps])
    assert [torch.equal(a, b) for a, b in zip(*maps, strict=True)] == [True] * 10 + [False] * 6
    assert all(torch.equal(a[0], b[0]) for a, b in zip(*maps, strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps_from": 1.5}, "steps_from: got 1.5, expected 0 to 1, a share of the steps"),
        ({"layers_from": 8}, "layers_from: got 8, expected 0 to 7, the layers that there are"),
        ({"layers_from": 1.0}, "layers_from: got 1.0, expected a whole number"),
    ],
    ids=["steps", "layers", "whole"],
)
def test_settings_that_do_not_fit_are_refused(
    model: StableDiffusion, inversion: Inversion, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        masactrl(model, inversion, TIGER, **settings)


def test_a_trajectory_is_needed(model: StableDiffusion, image: torch.Tensor) -> None:
    encoded = invert(model, image, "a cat", steps=2, method="autoencoder")
    with pytest.raises(ValueError, match="no trajectory for MasaCtrl"):
        masactrl(model, encoded, TIGER)
