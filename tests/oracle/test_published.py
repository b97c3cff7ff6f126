"""An inversion leaves for diffusers and comes back, and shows the same picture on both sides."""

import pytest
import torch

import nti
from nti import Inversion, StableDiffusion, from_published, to_published
from oracle_unet import converted_unet
from test_null_text import T, W, ddim_scheduler
from tiny import SD_LIKE, make_model
from tolerances import assert_close

PROMPT = "a cat sitting next to a mirror"


@pytest.fixture(scope="module")
def sd_like() -> StableDiffusion:
    return make_model(SD_LIKE)


@pytest.fixture(scope="module")
def made(sd_like: StableDiffusion) -> Inversion:
    g = torch.Generator().manual_seed(1)
    image = torch.rand(1, 3, 64, 64, generator=g, dtype=torch.float64) * 2 - 1
    return nti.invert(sd_like, image, PROMPT, steps=T, guidance_scale=W, inner_steps=2)


@torch.no_grad()
def test_diffusers_samples_the_same_picture(sd_like: StableDiffusion, made: Inversion) -> None:
    """Guided sampling as the community pipeline does it, on diffusers' UNet and scheduler."""
    z, embeddings = to_published(made)
    assert z.shape == (1, 4, 8, 8) and embeddings.shape == (T, 1, 77, 24)
    unet, scheduler = converted_unet(sd_like), ddim_scheduler()
    cond = sd_like.encode_text([PROMPT])
    for t, null in zip(scheduler.timesteps.tolist(), embeddings, strict=True):
        eps_u, eps_c = unet(torch.cat([z, z]), t, torch.cat([null, cond])).sample.chunk(2)
        z = scheduler.step(eps_u + W * (eps_c - eps_u), t, z).prev_sample
    assert_close(z, made.latents[-1:])


@pytest.mark.parametrize("as_list", [False, True], ids=["tensor", "list"])
def test_it_comes_back(sd_like: StableDiffusion, made: Inversion, as_list: bool) -> None:
    x_t, embeddings = to_published(made)
    given = list(embeddings) if as_list else embeddings
    found = from_published(sd_like, x_t, given, PROMPT, guidance_scale=W)
    assert_close(found.latents, made.latents)
    assert torch.equal(found.uncond, made.uncond) and found.prompt == PROMPT
    assert nti.reconstruct(sd_like, found).tobytes() == nti.reconstruct(sd_like, made).tobytes()
    edited = "a tiger sitting next to a mirror"
    theirs, ours = (nti.edit(sd_like, x, edited).images[0] for x in (found, made))
    assert theirs.tobytes() == ours.tobytes()


def test_what_does_not_fit_is_refused(sd_like: StableDiffusion, made: Inversion) -> None:
    x_t, embeddings = to_published(made)
    wrong = {
        r"uncond_embeddings: got \(10, 77, 24\)": (x_t, embeddings[:, 0]),
        r"uncond_embeddings: got shapes": (x_t, [embeddings[0], embeddings[1, 0]]),
        r"x_t: got \(4, 8, 8\)": (x_t[0], embeddings),
        "x_t: got torch.float64, expected finite": (x_t * torch.nan, embeddings),
        "uncond_embeddings: got torch.int64": (x_t, embeddings.long()),
    }
    for message, (latent, null) in wrong.items():
        with pytest.raises(ValueError, match=message):
            from_published(sd_like, latent, null, PROMPT)
