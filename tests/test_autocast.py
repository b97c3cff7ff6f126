"""A caller's torch.autocast neither breaks nor changes anything."""

import pytest
import torch

import nti
from nti import StableDiffusion
from tiny import make_model

TIGER = "a tiger sitting next to a mirror"


@pytest.fixture(scope="module", params=["reference", "onednn"])
def single(request: pytest.FixtureRequest) -> StableDiffusion:
    return make_model(dtype=torch.float32, backend=request.param)


@pytest.mark.usefixtures("any_size")
def test_results_are_the_same_to_the_bit(single: StableDiffusion, image: torch.Tensor) -> None:
    def everything() -> list[torch.Tensor]:
        made = nti.invert(
            single, image.float(), "a cat sitting next to a mirror", steps=3, guidance_scale=3.0,
            inner_steps=2,
        )  # fmt: skip
        edited = nti.edit(single, made, TIGER, blend=("cat", "tiger"))
        drawn = nti.generate(single, TIGER, steps=2)
        maps = nti.average_attention(single, made)
        again = nti.reconstruct_latents(single, made)
        pixels = single.decode_latent(again[-1])
        assert edited.masks is not None
        return [
            made.uncond, made.pivot, made.latents, made.losses, edited.latents, edited.masks,
            drawn.latents, maps, again, pixels,
        ]  # fmt: skip

    plain = everything()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = everything()
        assert torch.is_autocast_enabled("cpu"), "the caller's is as it was"
    for a, b in zip(plain, cast, strict=True):
        assert a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
