"""The measures of an edit, on renders whose attributes are known."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

import measure
from scene import BACKGROUNDS, COLOURS, PATTERNS, SHAPES, SIZE, Object, Scene, object_mask, render

SEEDS = (5_000_001, 5_000_002, 5_000_003)


def pair(seed: int, colour: str = "red", pattern: str = "plain", background: str = "sky") -> Scene:
    """Two objects; the first is the one under test."""
    other = "blue" if colour != "blue" else "yellow"
    return Scene((Object("star", colour, pattern), Object("heart", other)), background, seed)


def softened(pixels: np.ndarray) -> np.ndarray:
    """Blur as a decoder does."""
    return np.array(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(1)))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("colour", COLOURS)
def test_colour_is_read_through_every_pattern(colour: str, pattern: str) -> None:
    for seed in SEEDS:
        scene = pair(seed, colour, pattern)
        pixels = render(scene)
        assert measure.read_colour(pixels, scene, 0) == colour
        assert measure.read_colour(softened(pixels), scene, 0) == colour


def test_colour_is_read_from_the_pixels_and_not_from_the_scene() -> None:
    scene = pair(SEEDS[0], "red")
    assert measure.read_colour(render(scene), scene.with_object(0, colour="green"), 0) == "red"


def test_a_darkened_object_has_no_colour() -> None:
    scene = pair(SEEDS[0])
    cover = object_mask(scene, 0)[..., None]
    dark = (render(scene) * (1 - 0.8 * cover)).astype(np.uint8)
    assert measure.read_colour(dark, scene, 0) == measure.NONE


def test_a_greyed_object_has_no_colour() -> None:
    scene = pair(SEEDS[0])
    pixels = render(scene)
    grey = pixels.mean(axis=2, keepdims=True)
    washed = (pixels + 0.8 * object_mask(scene, 0)[..., None] * (grey - pixels)).astype(np.uint8)
    assert measure.read_colour(washed, scene, 0) == measure.NONE


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_an_erased_object_has_neither_colour_nor_shape(background: str) -> None:
    for seed in SEEDS:
        scene = pair(seed, background=background)
        gone = measure.erased(scene, 0)
        assert measure.read_colour(gone, scene, 0) == measure.NONE
        assert measure.read_shape(gone, scene, 0) == measure.NONE


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_background_is_read_from_the_pixels(background: str) -> None:
    told = pair(0, background="snow" if background != "snow" else "wood")
    for seed in range(5_000_000, 5_000_010):
        pixels = render(pair(seed, background=background))
        assert measure.read_background(softened(pixels), replace(told, seed=seed)) == background


def test_readings_of_held_out_renders_are_nearly_always_right() -> None:
    shares = measure.accuracy(count=120)
    floors = {"clean": 0.99, "blurred": 0.97, "moved": 0.97}
    low = {k: v for k, v in shares.items() if v < floors[k.split()[1]]}
    assert len(shares) == 13
    assert not low


@pytest.mark.parametrize("shape", SHAPES)
def test_hue_and_background_do_not_change_the_shape_or_the_pattern(shape: str) -> None:
    scene = Scene((Object(shape, "red", "striped"),), "sand", SEEDS[0])
    pixels = np.array(Image.fromarray(render(scene)).convert("HSV"))
    for turn in range(0, 256, 32):
        turned = pixels + np.array([turn, 0, 0], dtype=np.uint8)
        image = np.asarray(Image.fromarray(turned, "HSV").convert("RGB"))
        assert measure.read_shape(image, scene, 0) == shape
        assert measure.read_pattern(image, scene, 0) == "striped"
    for background in BACKGROUNDS:
        assert measure.read_shape(render(scene.with_background(background)), scene, 0) == shape


def test_shape_is_read_from_the_pixels_and_not_from_the_scene() -> None:
    scene = pair(SEEDS[0])
    assert measure.read_shape(render(scene), scene.with_object(0, shape="circle"), 0) == "star"


def test_crop_is_the_same_for_every_shape() -> None:
    scene = pair(SEEDS[0])
    pixels = render(scene)
    crops = [measure.crop(pixels, scene.with_object(0, shape=s), 0) for s in SHAPES]
    assert crops[0].shape == (measure.CROP, measure.CROP, 3)
    assert all(np.array_equal(c, crops[0]) for c in crops)


def test_untouched_psnr_ignores_the_changed_region() -> None:
    source, edited = pair(SEEDS[0]), pair(SEEDS[0], "green")
    truth = render(edited)
    broken = truth.copy()
    broken[object_mask(edited, 0) > 0] = 0
    assert measure.untouched_psnr(broken, truth, render(source)) == float("inf")


def test_untouched_psnr_notices_a_change_elsewhere() -> None:
    source, edited = pair(SEEDS[0]), pair(SEEDS[0], "green")
    truth = render(edited)
    slight, broken = truth.copy(), truth.copy()
    slight[:3] ^= 1
    broken[object_mask(edited, 1) > 0] = 0
    scores = [measure.untouched_psnr(p, truth, render(source)) for p in (slight, broken)]
    assert scores[1] < 20 < 50 < scores[0] < float("inf")


def test_untouched_psnr_needs_an_untouched_region() -> None:
    black = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="whole image"):
        measure.untouched_psnr(black, black, black + 3)


def test_psnr_of_a_known_error() -> None:
    a = np.full((4, 4, 3), 10, dtype=np.uint8)
    assert measure.psnr(a, a + 255 // 10) == pytest.approx(20 * np.log10(255 / 25))
    assert measure.psnr(a + 25, a) == measure.psnr(a, a + 25)
    assert measure.psnr(a, a) == float("inf")
    with pytest.raises(ValueError, match="expected one shape"):
        measure.psnr(a, a.astype(np.float32))


def test_stored_classifier_is_small() -> None:
    assert measure.WEIGHTS.stat().st_size <= 300_000
