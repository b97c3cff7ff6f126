"""A UNet of another library under this project's algorithms, as docs/embedding.md says."""

import dataclasses
from functools import partial

import torch
from torch import Tensor

import nti
from nti import StableDiffusion
from nti.sampling.step import guided_step, null_text_iteration
from oracle_unet import converted_unet
from tiny import SD_LIKE, make_model
from tolerances import assert_close

SETTINGS = {"steps": 3, "inner_steps": 2, "guidance_scale": 3.0}


def test_null_text_inversion_runs_on_it(image: Tensor) -> None:
    model = make_model(SD_LIKE)
    their_unet = converted_unet(model)
    called: list[torch.Size] = []

    def noise(latent: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        called.append(latent.shape)
        found: Tensor = their_unet(latent, timestep, context).sample
        return found

    steps = dataclasses.replace(
        model.steps,
        noise=noise,
        guided_step=partial(guided_step, noise),
        null_text_iteration=partial(null_text_iteration, noise),
    )
    parts = (model.config, model.unet, model.vae, model.text, model.tokenizer)
    foreign = StableDiffusion(*parts, steps)
    found = nti.invert(foreign, image, "a cat", **SETTINGS)
    assert len(called) == 3 + 3 * (1 + 2 + 1)
    own = nti.invert(model, image, "a cat", **SETTINGS)
    assert_close(found.pivot, own.pivot)
    assert_close(found.latents, own.latents)
    edited = nti.sdedit(foreign, found, "a dog", strength=0.7)
    assert_close(edited.latents, nti.sdedit(model, own, "a dog", strength=0.7).latents)
