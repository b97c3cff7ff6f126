"""Many images at once: each as if it were alone."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from nti import (
    BatchError,
    Inversion,
    InversionSettings,
    NotFiniteError,
    StableDiffusion,
    invert,
    invert_batch,
)
from nti.inversion.inversion import TENSORS
from tolerances import assert_close

SETTINGS = {"steps": 4, "guidance_scale": 3.0, "inner_steps": 4}
PROMPTS = ["a cat", "two dogs sitting next to a mirror"]


def images() -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    return [torch.rand(1, 3, 64, 64, generator=g).double() * 2 - 1 for _ in PROMPTS]


def test_a_batch_is_what_inverting_one_by_one_gives(model: StableDiffusion) -> None:
    plain = invert_batch(model, images(), PROMPTS, InversionSettings(**SETTINGS))
    first = [x.losses[:, 0].max().item() for x in plain]

    def threshold(index: int, steps: int) -> float:
        """Met at once by one of the two images."""
        return sum(first) / 2

    settings = InversionSettings(threshold=threshold, **SETTINGS)
    together = invert_batch(model, images(), PROMPTS, settings)
    assert [x.prompt for x in together] == PROMPTS
    for found, image, prompt in zip(together, images(), PROMPTS, strict=True):
        alone = invert(model, image, prompt, threshold=threshold, **SETTINGS)
        assert_close(found.pivot, alone.pivot)
        assert_close(found.latents, alone.latents)
        assert_close(found.uncond, alone.uncond)
        assert torch.equal(found.losses.isnan(), alone.losses.isnan())
    stops = [(~x.losses.isnan()).sum(dim=1).tolist() for x in together]
    assert stops[0] != stops[1]  # each stopped by itself


def test_an_inversion_keeps_its_own_memory_and_not_the_batchs(model: StableDiffusion) -> None:
    settings = InversionSettings(method="ddim", steps=2)
    for made in invert_batch(model, images(), PROMPTS, settings):
        for name in TENSORS:
            tensor = getattr(made, name)
            assert tensor.untyped_storage().nbytes() == tensor.nbytes, name


@pytest.mark.parametrize(
    ("given", "prompts", "message"),
    [
        (images()[:2], "a cat", "got 2 images and one string 'a cat' of prompts, expected two"),
        ("x.png", ["a cat"], "got one string 'x.png' of images and 1 prompts"),
        (images()[:2], ["a cat"], "got 2 images and 1 prompts"),
        ([], [], "got no image, expected one at least"),
    ],
    ids=["one-prompt", "one-image", "fewer", "none"],
)
def test_images_and_prompts_must_match(
    model: StableDiffusion, given: object, prompts: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        invert_batch(model, given, prompts)


def test_images_of_one_batch_have_one_size(model: StableDiffusion) -> None:
    sizes = [Image.new("RGB", (64, 64)), Image.new("RGB", (128, 64))]
    with pytest.raises(ValueError, match="got images of 128x64, 64x64 pixels, expected one size"):
        invert_batch(model, sizes, PROMPTS, size="native")


def test_an_image_that_cannot_be_read_does_not_take_the_others_along(
    model: StableDiffusion, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    given = [tmp_path / "none.png", images()[0], tmp_path / "broken.png"]
    settings = InversionSettings(method="ddim", steps=2)
    with pytest.raises(BatchError, match="2 of 3 images failed: image 0: .*no such file") as error:
        invert_batch(model, given, ["a cat"] * 3, settings, size=None)
    made = error.value.results
    assert sorted(error.value.errors) == [0, 2] and made[0] is made[2] is None
    assert made[1] == invert(model, images()[0], "a cat", method="ddim", steps=2)
    with pytest.raises(ValueError, match="no such file"):
        invert_batch(model, given[:1], ["a cat"], settings)


def test_an_image_that_overflows_does_not_take_the_others_along(
    model: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first image's embedding of the caption is not finite, so all that follows is not."""
    encode = model.encode_text

    def poisoned(prompts: list[str]) -> torch.Tensor:
        states = encode(prompts).clone()
        states[[i for i, prompt in enumerate(prompts) if prompt == "poison"]] = torch.nan
        return states

    monkeypatch.setattr(model, "encode_text", poisoned)
    settings = InversionSettings(**SETTINGS)
    with pytest.raises(BatchError, match="1 of 2 images failed: image 0: .*not finite") as error:
        invert_batch(model, images(), ["poison", PROMPTS[1]], settings)
    assert isinstance(error.value.errors[0], NotFiniteError) and error.value.results[0] is None
    found = error.value.results[1]
    assert isinstance(found, Inversion)
    alone = invert(model, images()[1], PROMPTS[1], **SETTINGS)
    assert_close(found.latents, alone.latents)
    assert_close(found.uncond, alone.uncond)
    with pytest.raises(BatchError, match="2 of 2 images failed"):
        invert_batch(model, images(), ["poison"] * 2, settings)
    with pytest.raises(NotFiniteError, match="DDIM inversion to timestep"):
        invert(model, images()[0], "poison", **SETTINGS)
