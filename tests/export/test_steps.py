"""The algorithms on exported steps give what they give on the model's own."""

import pytest
import torch

import nti
from nti import StableDiffusion
from nti.export.exported import Exported
from nti.export.manifest import ExportError
from nti.export.steps import with_exported
from tiny import TINY, make_model

PROMPT, TARGETS = "a cat on a mat", ["a dog on a mat", "a cat on a red mat"]
IMAGE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
SETTINGS = {"steps": 6, "inner_steps": 3, "guidance_scale": 3.0}


def test_an_inversion_and_its_edits(small: StableDiffusion, exported: Exported) -> None:
    own = nti.invert(small, IMAGE, PROMPT, **SETTINGS)
    theirs = nti.invert(with_exported(small, exported), IMAGE, PROMPT, **SETTINGS)
    assert torch.equal(own.losses.isnan(), theirs.losses.isnan())  # as many iterations
    assert (own.uncond - theirs.uncond).abs().max() < 5e-3
    assert (own.latents - theirs.latents).abs().max() < 1e-4
    assert (own.pivot - theirs.pivot).abs().max() < 1e-4
    settings = {"cross_replace": 0.5, "self_replace": [0.5, 0.2], "blend": [("cat", "dog"), None]}
    expected = nti.edit(small, own, TARGETS, **settings)
    found = nti.edit(with_exported(small, exported), own, TARGETS, **settings)
    assert (found.latents - expected.latents).abs().max() < 1e-4
    assert expected.masks is not None and torch.equal(found.masks, expected.masks)


def test_a_batch_of_another_size_is_refused(small: StableDiffusion, exported: Exported) -> None:
    model = with_exported(small, exported)
    with pytest.raises(ExportError, match=r"noise: latent: got float32 \(2, 4, 8, 8\)"):
        nti.invert_batch(model, [IMAGE, IMAGE], [PROMPT, PROMPT], nti.InversionSettings(steps=6))


def test_other_weights_are_refused(exported: Exported) -> None:
    other = make_model(TINY, torch.float32)
    other.unet.conv_in.weight.mul_(2)
    with pytest.raises(ExportError, match="model: got tiny with another unet, expected tiny as it"):
        with_exported(other, exported)
