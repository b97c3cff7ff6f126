from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nti import Inversion, StableDiffusion, invert, load_image, masked, sdedit, to_pil
from tolerances import assert_close, relative_error

TIGER = "a tiger sitting next to a mirror"
SMALL = "a small cat sitting next to a mirror"
PROMPT = "a cat sitting next to a mirror"
MASK = torch.zeros(64, 64, dtype=torch.bool)
MASK[13:40, 17:50] = True
INSIDE = torch.zeros(8, 8, dtype=torch.bool)
INSIDE[1:5, 2:7] = True


def test_the_latent_outside_is_the_source_noised_to_where_each_step_arrives(
    model: StableDiffusion, inversion: Inversion
) -> None:
    result = masked(model, inversion, [TIGER, SMALL], mask=MASK, strength=0.6, seed=5)
    schedule, z_0 = model.schedule(10), inversion.pivot[-1]
    noises = torch.randn(10, 4, 8, 8, generator=torch.Generator().manual_seed(5)).double()
    assert result.latents.shape == (7, 2, 4, 8, 8)
    for i, latents in zip(range(4, 10), result.latents, strict=False):
        a = schedule.alpha_bar[i]
        for latent in latents:
            noised = a.sqrt() * z_0 + (1 - a).sqrt() * noises[i]
            assert_close(latent[:, ~INSIDE], noised[:, ~INSIDE])
            if i > 4:
                assert relative_error(latent[:, INSIDE], noised[:, INSIDE]) > 1e-3
    for latent in result.latents[-1]:
        assert torch.equal(latent[:, ~INSIDE], z_0[:, ~INSIDE])
        assert not torch.equal(latent[:, INSIDE], z_0[:, INSIDE])
    assert result.masks is not None
    assert torch.equal(result.masks, INSIDE.expand(6, 2, 8, 8))


def test_the_pixels_outside_are_the_autoencoders_own(
    model: StableDiffusion, image: torch.Tensor, inversion: Inversion
) -> None:
    result = masked(model, inversion, TIGER, mask=MASK)
    source = np.asarray(to_pil(model.decode_latent(model.encode_image(image)))[0])
    edited = np.asarray(result.images[0])
    assert np.array_equal(source, np.asarray(result.source))
    assert np.array_equal(edited[~MASK], source[~MASK])
    assert (edited[MASK] != source[MASK]).mean() > 0.5


def test_the_pixels_outside_are_the_originals_where_it_is_given(
    model: StableDiffusion, tmp_path: Path
) -> None:
    path = tmp_path / "wide.png"
    noise = np.random.default_rng(1).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    inversion = invert(model, path, PROMPT, steps=4, method="autoencoder")
    result = masked(model, inversion, TIGER, mask=MASK, original=path)
    edited, fitted = (np.asarray(x) for x in (result.images[0], to_pil(load_image(path, 64))[0]))
    assert np.array_equal(edited[~MASK], fitted[~MASK])
    assert np.array_equal(np.asarray(result.source), fitted)
    with pytest.raises(ValueError, match="original: got 64x64, expected 80x48"):
        masked(model, inversion, TIGER, mask=MASK, original=to_pil(load_image(path, 64))[0])


def test_the_source_outside_changes_what_is_sampled_inside(
    model: StableDiffusion, inversion: Inversion
) -> None:
    blended = masked(model, inversion, TIGER, mask=MASK, strength=1.0)
    assert_close(blended.latents[0], sdedit(model, inversion, TIGER, strength=1.0).latents[0])
    free = sdedit(model, inversion, TIGER, strength=1.0).latents[-1, 0]
    assert relative_error(blended.latents[-1, 0][:, INSIDE], free[:, INSIDE]) > 1e-2


def test_strength_0_is_the_source(model: StableDiffusion, inversion: Inversion) -> None:
    result = masked(model, inversion, TIGER, mask=MASK, strength=0)
    assert result.images[0].tobytes() == result.source.tobytes()


def test_a_word_adds_its_steps_to_what_the_callback_hears(
    model: StableDiffusion, inversion: Inversion
) -> None:
    heard: list[tuple[int, int]] = []
    result = masked(
        model, inversion, TIGER, mask="cat", mask_threshold=0.9, strength=0.5,
        callback=lambda done, total: heard.append((done, total)),
    )  # fmt: skip
    assert heard == [(i + 1, 15) for i in range(15)]
    assert result.masks is not None and 0 < result.masks[0, 0].sum() < 64
