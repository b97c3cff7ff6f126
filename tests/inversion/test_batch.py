"""Many images at once: each as if it were alone."""

import pytest
import torch
from PIL import Image

from nti import StableDiffusion, invert
from tolerances import assert_close

SETTINGS = {"steps": 4, "guidance_scale": 3.0, "inner_steps": 4}
PROMPTS = ["a cat", "two dogs sitting next to a mirror"]


def images() -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    return [torch.rand(1, 3, 64, 64, generator=g).double() * 2 - 1 for _ in PROMPTS]


def test_a_batch_is_what_inverting_one_by_one_gives(model: StableDiffusion) -> None:
    first = [x.losses[:, 0].max().item() for x in invert(model, images(), PROMPTS, **SETTINGS)]

    def threshold(index: int, steps: int) -> float:
        """Met at once by one of the two images."""
        return sum(first) / 2

    together = invert(model, images(), PROMPTS, threshold=threshold, **SETTINGS)
    assert isinstance(together, list) and [x.prompt for x in together] == PROMPTS
    for found, image, prompt in zip(together, images(), PROMPTS, strict=True):
        alone = invert(model, image, prompt, threshold=threshold, **SETTINGS)
        assert_close(found.pivot, alone.pivot)
        assert_close(found.latents, alone.latents)
        assert_close(found.uncond, alone.uncond)
        assert torch.equal(found.losses.isnan(), alone.losses.isnan())
    stops = [(~x.losses.isnan()).sum(dim=1).tolist() for x in together]
    assert stops[0] != stops[1]  # each stopped by itself


def test_a_list_of_one_gives_a_list(model: StableDiffusion) -> None:
    made = invert(model, images()[:1], PROMPTS[:1], method="ddim", steps=2)
    assert isinstance(made, list) and len(made) == 1


@pytest.mark.parametrize(
    ("count", "prompt", "message"),
    [
        (2, "a cat", "got a list of images and one prompt"),
        (None, PROMPTS, "got one image and a list of prompts"),
        (2, ["a cat"], "got 2 images and 1 prompts"),
        (0, [], "got 0 images and 0 prompts"),
    ],
)
def test_images_and_prompts_must_match(
    model: StableDiffusion, count: int | None, prompt: object, message: str
) -> None:
    image = images()[0] if count is None else images()[:count]
    with pytest.raises(ValueError, match=message):
        invert(model, image, prompt, steps=2)


def test_images_of_one_batch_have_one_size(model: StableDiffusion) -> None:
    sizes = [Image.new("RGB", (64, 64)), Image.new("RGB", (128, 64))]
    with pytest.raises(ValueError, match="got images of 128x64, 64x64 pixels, expected one size"):
        invert(model, sizes, PROMPTS, size="native", steps=2)
