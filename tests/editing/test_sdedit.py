import dataclasses

import pytest
import torch

from nti import Inversion, StableDiffusion, invert, reconstruct, sdedit, to_pil
from tolerances import assert_close, relative_error

TIGER = "a tiger sitting next to a mirror"
SMALL = "a small cat sitting next to a mirror"
PROMPT = "a cat sitting next to a mirror"
FEW = {"steps": 5, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def encoded(model: StableDiffusion, image: torch.Tensor) -> Inversion:
    return invert(model, image, PROMPT, method="autoencoder", **FEW)


def test_strength_0_is_the_autoencoders_reconstruction(
    model: StableDiffusion, image: torch.Tensor, inversion: Inversion
) -> None:
    result = sdedit(model, inversion, TIGER, strength=0)
    expected = to_pil(model.decode_latent(model.encode_image(image)))[0].tobytes()
    assert result.images[0].tobytes() == result.source.tobytes() == expected
    assert result.images[0].tobytes() != reconstruct(model, inversion).tobytes()


def test_the_image_is_left_by_the_root_of_alpha_bar(
    model: StableDiffusion, image: torch.Tensor, encoded: Inversion
) -> None:
    other = invert(model, -image, PROMPT, method="autoencoder", **FEW)
    schedule, z = model.schedule(5), encoded.pivot[-1] - other.pivot[-1]
    differences = {}
    for strength in (0.4, 1.0):
        ours, theirs = (
            sdedit(model, i, TIGER, strength=strength).latents[:, 0] for i in (encoded, other)
        )
        assert len(ours) == 5 * strength + 1
        signal = schedule.alpha_bar[-int(5 * strength)].sqrt()
        assert_close(ours[0] - theirs[0], signal * z)
        differences[strength] = relative_error(ours[-1], theirs[-1])
    assert differences[1.0] < 0.5 * differences[0.4]


def test_all_edits_start_from_one_noise_of_the_seed(
    model: StableDiffusion, encoded: Inversion
) -> None:
    both = sdedit(model, encoded, [TIGER, SMALL], strength=0.6, seed=3)
    assert torch.equal(both.latents[0, 0], both.latents[0, 1])
    for i, prompt in enumerate([TIGER, SMALL]):
        alone = sdedit(model, encoded, prompt, strength=0.6, seed=3)
        assert_close(both.latents[:, i], alone.latents[:, 0])
    other = sdedit(model, encoded, TIGER, strength=0.6, seed=4)
    assert relative_error(other.latents[0, 0], both.latents[0, 0]) > 0.1


def test_the_null_embeddings_are_the_inversions_unless_a_negative_prompt_is_given(
    model: StableDiffusion, inversion: Inversion
) -> None:
    null = model.encode_text([""]).expand_as(inversion.uncond)
    untrained = dataclasses.replace(inversion, uncond=null)
    plain = sdedit(model, untrained, TIGER).latents
    assert_close(sdedit(model, inversion, TIGER, negative_prompt="").latents, plain)
    assert relative_error(sdedit(model, inversion, TIGER).latents, plain) > 1e-4


@pytest.mark.parametrize("method", ["ddim", "direct-both-branches", "edit-friendly"])
def test_what_is_added_to_the_sources_steps_is_not_added_here(
    model: StableDiffusion, image: torch.Tensor, encoded: Inversion, method: str
) -> None:
    made = invert(model, image, PROMPT, method=method, **FEW)
    assert_close(
        sdedit(model, made, TIGER, strength=0.6).latents,
        sdedit(model, encoded, TIGER, strength=0.6).latents,
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strength": 1.1}, "strength: got 1.1, expected 0 to 1, a share of the steps"),
        ({"seed": -1}, "seed: got -1"),
        ({"callback": 3}, "callback: got 3"),
        ({"mix": 0.5}, "mix: got 0.5 for an inversion by autoencoder"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_do_not_fit_are_refused(
    model: StableDiffusion, encoded: Inversion, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sdedit(model, encoded, TIGER, **settings)
