"""Images that are not the model's square, from file to file: what depends on the size is derived
from the layers.
"""

import dataclasses
import math
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

import nti
from nti import Inversion, StableDiffusion
from nti.inversion.invert import Size
from nti.networks.control import AttentionControl, Fold, MapCollector
from nti.sampling.step import controlled_noise
from tiny import TINY, make_model
from tolerances import assert_close

PROMPT = "a cat sitting next to a mirror"
TIGER = "a tiger sitting next to a mirror"
WIDE = (64, 48)


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Upright 100 x 60, stored on its side."""
    path = tmp_path_factory.mktemp("any") / "photograph.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.effect_noise((60, 100), 90).convert("RGB").save(path, exif=exif)
    return path


def few(model: StableDiffusion, image: object, size: Size | None, fit: str = "crop") -> Inversion:
    return nti.invert(model, image, PROMPT, size=size, fit=fit, steps=5, method="ddim")


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_an_edit_with_local_blend_returns_into_its_photograph(
    model: StableDiffusion, photograph: Path, tmp_path: Path, fit: str
) -> None:
    few(model, photograph, WIDE, fit).save(tmp_path / "x")
    inversion = Inversion.load(tmp_path / "x")
    assert inversion.latents.shape == (6, 4, 6, 8)
    words = {"blend": ("cat", "tiger"), "subtract": "mirror"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random weights may leave a mask empty
        result = nti.edit(model, inversion, TIGER, **words, self_replace=0.2)
    assert result.masks is not None and result.masks.shape == (5, 1, 6, 8)
    assert result.masks.any() and not result.masks[1:].all(), "blending begins at int(0.2 T)"
    for mask, edited, source in zip(
        result.masks[1:, 0], result.latents[2:, 0], inversion.latents[2:], strict=True
    ):
        assert torch.equal(edited[:, ~mask], source[:, ~mask])
    assert result.images[0].size == WIDE
    back = nti.paste_back(result.images[0], photograph, inversion.placement)
    with Image.open(photograph) as original:
        upright = original.transpose(Image.Transpose.ROTATE_270)
    assert back.size == upright.size == (100, 60)
    assert back.crop((10, 0, 90, 60)).tobytes() != upright.crop((10, 0, 90, 60)).tobytes()
    for margin in ((0, 0, 10, 60), (90, 0, 100, 60)):
        same = back.crop(margin).tobytes() == upright.crop(margin).tobytes()
        assert same == (fit == "crop")


def test_the_models_square_is_the_default_and_a_tensor_is_taken_as_is(
    model: StableDiffusion, photograph: Path
) -> None:
    default = few(model, photograph, None)
    assert default.latents.shape[-2:] == (8, 8)
    assert default.placement == nti.Placement.create((100, 60), (64, 64), "crop")
    assert default == few(model, photograph, 64) == few(model, photograph, (64, 64))
    as_is = few(model, torch.zeros(3, 48, 80), None)
    assert as_is.latents.shape[-2:] == (6, 10) and as_is.placement is None


def test_the_native_size_is_the_images_own_to_the_nearest_multiple(
    model: StableDiffusion, photograph: Path
) -> None:
    inversion = few(model, photograph, "native")
    assert inversion.placement is not None and inversion.placement.size == (96, 64)
    tiny = few(model, Image.new("RGB", (3, 40)), "native")
    assert tiny.placement is not None and tiny.placement.size == (16, 32)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (100, "size: got 100x100, expected multiples of 16, which tiny needs; .* 96x96"),
        ((64, 40), "size: got 64x40, expected multiples of 16, .* nearest are 64x32"),
        (0, r"size: got 0, expected pixels or \(width, height\)"),
        (1, "the nearest are 16x16"),
        ("big", r"size: got 'big', expected pixels or \(width, height\) or 'native'"),
        ((64, 64, 3), "size: got .64, 64, 3., expected pixels"),
    ],
)
def test_a_size_that_the_model_cannot_take_names_the_nearest(
    model: StableDiffusion, size: Size, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        few(model, Image.new("RGB", (64, 64)), size)


def test_a_tensor_has_its_size(model: StableDiffusion) -> None:
    with pytest.raises(ValueError, match="size: got 64 for a tensor, expected none"):
        few(model, torch.zeros(3, 64, 64), 64)


def test_sd_v1_takes_multiples_of_64() -> None:
    assert nti.SD_V1.granularity == 64


@pytest.fixture(scope="module")
def deep() -> StableDiffusion:
    """Four levels as SD v1 has, and its rules: injection from level 1 on, word maps of level 2."""
    unet = dataclasses.replace(
        TINY.unet,
        channel_multipliers=(1, 1, 2, 2),
        res_blocks=2,
        attention_levels=(0, 1, 2),
        self_injection_level=1,
        word_map_level=2,
    )
    return make_model(dataclasses.replace(TINY, unet=unet))


def test_injection_and_word_maps_go_by_level_at_any_size(deep: StableDiffusion) -> None:
    """A 24 x 16 latent, as of 192 x 128 pixels: level 1 is 12 x 8, level 2 is 6 x 4."""
    latent = torch.randn(2, 4, 16, 24, generator=torch.Generator().manual_seed(0)).double()
    words = torch.zeros(2, 77, 1, dtype=torch.float64)
    words[:, 2] = 1.0
    fold = Fold(
        source_rows=torch.tensor([0]),
        source_mix=torch.zeros(1, 77, 77, dtype=torch.float64),
        own_mix=torch.ones(1, 77, dtype=torch.float64),
    )
    control = AttentionControl(fold, self_rows=torch.tensor([0, 0]), words=words)
    seen = MapCollector()
    cond = deep.encode_text([PROMPT, TIGER])
    _, maps = controlled_noise(deep.unet, latent, torch.tensor(500), cond, control, seen)
    sites = {"self": 0, "cross": 0}
    wanted = []
    for found in seen.maps:
        shape = (16 >> found.site.level, 24 >> found.site.level)
        assert found.probabilities.shape[2] == math.prod(shape)
        sites[found.site.kind] += 1
        if found.site.kind == "self":
            assert found.probabilities.shape[3] == math.prod(shape)
            source, edited = found.probabilities
            assert torch.equal(source, edited) == (found.site.level >= 1)
        elif found.site.level == 2:
            wanted.append(found.probabilities[..., 2].mean(dim=1).unflatten(1, shape))
    assert sites == {"self": 16, "cross": 16} and len(wanted) == 5
    assert maps is not None and maps.shape == (2, 1, 4, 6)
    assert_close(maps[:, 0], torch.stack(wanted).mean(dim=0))
