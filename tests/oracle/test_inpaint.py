"""Inpainting against the equations, over diffusers' UNet of nine channels."""

import pytest
import torch
from torch import Tensor

from nti.editing.inpaint import inpaint_latents
from oracle_unet import converted_unet
from tiny import INPAINTING, SD_LIKE, make_model
from tolerances import assert_close

STEPS, W = 5, 4.0


@pytest.mark.parametrize(
    "config", [INPAINTING, SD_LIKE.for_inpainting()], ids=["embedded-like", "sd-v1-like"]
)
def test_unet_is_diffusers_unet(config) -> None:
    model = make_model(config)
    theirs = converted_unet(model)
    g = torch.Generator().manual_seed(0)
    latent = torch.randn(2, 9, 16, 24, generator=g, dtype=torch.float64)
    context = torch.randn(2, 77, config.unet.context_dim, generator=g, dtype=torch.float64)
    timestep = torch.tensor([981, 321])
    with torch.no_grad():
        expected = theirs(latent, timestep, context).sample
    assert_close(model.steps.noise(latent, timestep, context), expected)


@pytest.mark.parametrize("strength", [1.0, 0.6], ids=["from-noise", "from-the-image"])
def test_sampling_is_the_plain_loop(image: Tensor, strength: float) -> None:
    model = make_model(INPAINTING)
    unet = converted_unet(model)
    mask = torch.zeros(1, 1, 64, 64, dtype=torch.float64)
    mask[..., 8:40, 24:56] = 1
    seed, prompt, negative = 5, "a cat", "a dog"

    # Betas evenly spaced in their root; DDIM down to alpha_bar[0]; eps_u + w (eps_c - eps_u).
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha_bar = torch.cumprod(1 - betas, 0)
    timesteps = [801, 601, 401, 201, 1]
    eps = torch.randn(1, 1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))[0].double()
    with torch.no_grad():
        z_0 = model.vae.encode(image)
        masked = model.vae.encode(image * (mask < 0.5))
        small = mask[..., ::8, ::8]
        null, cond = model.encode_text([negative]), model.encode_text([prompt])
        z = eps
        if strength < 1:
            timesteps = timesteps[2:]
            a = alpha_bar[timesteps[0]]
            z = a.sqrt() * z_0 + (1 - a).sqrt() * eps
        for t in timesteps:
            x = torch.cat([z, small, masked], dim=1)
            e_u, e_c = (unet(x, t, states).sample for states in (null, cond))
            e = e_u + W * (e_c - e_u)
            a, after = alpha_bar[t], alpha_bar[max(t - 200, 0)]
            z = after.sqrt() * (z - (1 - a).sqrt() * e) / a.sqrt() + (1 - after).sqrt() * e

    made = inpaint_latents(
        model, image, mask.bool(), prompt, steps=STEPS, guidance_scale=W,
        negative_prompt=negative, strength=strength, seed=seed,
    )  # fmt: skip
    assert_close(made.latents[-1], z)
