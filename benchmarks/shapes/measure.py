"""Does an edited image show what was asked? Hue tells the colour, a small classifier the shape.

No reading looks at the diffusion model or its caption: only at pixels. An edit may move an object a
little, which the PSNRs count and the readings do not: shape and pattern are read where it stands.
Run as a program, it prints how accurate the readings are on held-out renders.
"""

import functools
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from safetensors.torch import load_file
from torch import Tensor, nn

from scene import (
    BACKGROUNDS,
    COLOURS,
    PATTERNS,
    SHAPES,
    SIZE,
    Scene,
    object_mask,
    random_scene,
    render,
)

__all__ = [
    "CROP",
    "NONE",
    "WEIGHTS",
    "AttributeClassifier",
    "Pixels",
    "accuracy",
    "blurred",
    "crop",
    "cut",
    "erased",
    "load_classifier",
    "place",
    "psnr",
    "read_background",
    "read_colour",
    "read_pattern",
    "read_shape",
    "to_tensor",
    "untouched_psnr",
]

Pixels = NDArray[np.uint8]

NONE = "none"
"""No object that can be recognised, or one of no colour that has a word."""

WEIGHTS = Path(__file__).with_name("attributes.safetensors")

HELD_OUT_SEED = 4_000_000
"""Where the scenes of `accuracy` start; those that models are trained on lie below."""

CROP = 64
"""Side of what the classifier sees, in its pixels."""
REACH = 1.3
"""Half the side of a crop in radii: the farthest corner of a shape, a star's, lies at 1.2."""

MOVED = 12
"""Pixels by which `accuracy` moves objects."""

MIN_SATURATION, MIN_VALUE = 0.5, 0.5
"""Objects start at 0.70 and 0.72; no background has both over 0.5, so bare ground has no colour."""
FOREGROUND, FEWEST = 30.0, 60
"""How far a channel of an object is from the background's gradient, and the fewest such pixels."""
MAX_SHADE = 13.0
"""How far a seed's shade (8) and texture (5) move a background from its nominal colours."""


def psnr(a: Pixels, b: Pixels) -> float:
    """PSNR in dB (peak 255) of two uint8 images of one shape; infinite where they are equal."""
    if a.shape != b.shape or a.dtype != np.uint8 or b.dtype != np.uint8:
        raise ValueError(f"got {a.shape} {a.dtype}, {b.shape} {b.dtype}, expected one shape, uint8")
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(255.0**2 / error))


def untouched_psnr(pixels: Pixels, true_edited: Pixels, true_source: Pixels) -> float:
    """PSNR in dB against the true edit where it changes nothing; all (SIZE, SIZE, 3) uint8.

    Left out are pixels that truly differ by more than 2 in any channel, and a border of 4 around
    them; ValueError where that leaves no pixel. Infinite where `pixels` has no error.
    """
    for image in (pixels, true_edited, true_source):
        _check(image)
    changed = (np.abs(true_edited.astype(np.int16) - true_source) > 2).any(axis=2)
    same = ~_grown(changed, 4)
    if not same.any():
        raise ValueError("got an edit of the whole image, expected one of a part of it")
    return psnr(pixels[same], true_edited[same])


def read_colour(pixels: Pixels, scene: Scene, index: int) -> str:
    """Return the colour word (SIZE, SIZE, 3) uint8 pixels show at an object's place, or `NONE`.

    `scene` is the true edited scene; its colours and patterns are not looked at, only its masks.
    """
    _check(pixels)
    others = [object_mask(scene, i) > 0 for i in range(len(scene.objects)) if i != index]
    hidden = _grown(np.logical_or.reduce([object_mask(scene, index) < 1, *others]), 2)
    hsv = np.asarray(Image.fromarray(pixels).convert("HSV"))[~hidden] / 255.0
    hue, saturation, value = 360 * hsv[:, 0], hsv[:, 1], hsv[:, 2]
    # A pattern's light part has at most half of its object's saturation; blur mixes the two.
    pure = saturation >= 0.75 * np.quantile(saturation, 0.9)
    if np.median(saturation[pure]) < MIN_SATURATION or np.median(value[pure]) < MIN_VALUE:
        return NONE
    angle = np.deg2rad(hue[pure])
    middle = np.rad2deg(np.arctan2(np.sin(angle).mean(), np.cos(angle).mean()))
    middle += np.median((hue[pure] - middle + 180) % 360 - 180)
    return min(COLOURS, key=lambda word: _outside(middle, *COLOURS[word]))


def _outside(hue: float, low: float, high: float) -> float:
    """Degrees from a hue to a range of hues, 0 inside."""
    half = (high - low) / 2
    return max(0.0, abs((hue - low - half + 180) % 360 - 180) - half)


def read_background(pixels: Pixels, scene: Scene) -> str:
    """Return the background word nearest to (SIZE, SIZE, 3) uint8 pixels, above and below objects.

    Objects are left out by their true masks. Always one of the words: the nearest may be far.
    """
    _check(pixels)
    free = np.ones((SIZE, SIZE), dtype=bool)
    for index in range(len(scene.objects)):
        free &= ~_grown(object_mask(scene, index) > 0, 4)
    strip, errors = SIZE // 5, {}
    # The shade is one number for the whole image, so the chroma and the gradient both have to fit.
    means, levels = [], []
    for rows in (slice(0, strip), slice(SIZE - strip, SIZE)):
        where = free[rows]
        means.append(pixels[rows][where].mean(axis=0))
        levels.append((np.nonzero(where)[0].mean() + rows.start + 0.5) / SIZE)
    for word, (top, bottom) in BACKGROUNDS.items():
        expected = [np.array(top) + level * np.subtract(bottom, top) for level in levels]
        excess = np.array(means) - expected
        shade = np.clip(excess.mean(), -MAX_SHADE, MAX_SHADE)
        errors[word] = float(np.square(excess - shade).sum())
    return min(errors, key=errors.__getitem__)


def _check(pixels: Pixels) -> None:
    if pixels.shape != (SIZE, SIZE, 3) or pixels.dtype != np.uint8:
        raise ValueError(f"got {pixels.shape} {pixels.dtype}, expected {(SIZE, SIZE, 3)} uint8")


def _grown(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """Dilate a mask by a square of `pixels` to every side."""
    image = torch.from_numpy(mask.astype(np.float32))[None, None]
    grown: NDArray[np.bool_] = F.max_pool2d(image, 2 * pixels + 1, 1, pixels)[0, 0].numpy() > 0
    return grown


def crop(pixels: Pixels, scene: Scene, index: int) -> Pixels:
    """Cut (CROP, CROP, 3) uint8 around where an object stands, the same whatever its shape.

    `scene` tells roughly where to look, and how large the object is.
    """
    _check(pixels)
    return cut(pixels, *_located(pixels, scene, index), place(scene, index)[2])


def _located(pixels: Pixels, scene: Scene, index: int) -> tuple[float, float]:
    """Centre x, y of what stands out from the background in an object's half of the image.

    Its true place where nothing does.
    """
    places = [place(scene, i) for i in range(len(scene.objects))]
    y, x = np.indices((SIZE, SIZE)) + 0.5
    free = np.logical_and.reduce([np.hypot(x - px, y - py) > half for px, py, half in places])
    # Every background is a vertical gradient: fitted where no object is, twice more without what
    # else stands out there.
    height = np.stack([np.ones_like(y), y / SIZE], axis=2)
    for _ in range(3):
        gradient, *_ = np.linalg.lstsq(height[free], pixels[free].astype(np.float64))
        stands_out = np.abs(pixels - height @ gradient).max(axis=2) > FOREGROUND
        free &= ~stands_out
    nearest = np.argmin([np.abs(x - px) for px, _, _ in places], axis=0)
    found = stands_out & (nearest == index)
    if found.sum() < FEWEST:
        return places[index][:2]
    return float(x[found].mean()), float(y[found].mean())


def place(scene: Scene, index: int) -> tuple[float, float, float]:
    """Centre x, y of an object's crop and half its side, in pixels."""
    # A circle's mask tells centre and radius, which depend on the seed but not on the shape.
    disc = object_mask(scene.with_object(index, shape="circle"), index)
    y, x = (float((disc * (axis + 0.5)).sum() / disc.sum()) for axis in np.indices(disc.shape))
    return x, y, REACH * float(np.sqrt(disc.sum() / np.pi)) / 0.98


def cut(pixels: Pixels, x: float, y: float, half: float) -> Pixels:
    """Cut out the square of 2 half pixels around (x, y), resized to (CROP, CROP, 3)."""
    margin = SIZE // 4
    wide = np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    box = (x - half + margin, y - half + margin, x + half + margin, y + half + margin)
    return np.array(Image.fromarray(wide).resize((CROP, CROP), Image.Resampling.BILINEAR, box=box))


class AttributeClassifier(nn.Module):
    """Shape (or none) and pattern of the object in the middle of a crop."""

    def __init__(self) -> None:
        super().__init__()
        widths, strides = (3, 16, 32, 48, 64), (2, 2, 2, 1)
        layers: list[nn.Module] = []
        for c_in, c_out, stride in zip(widths, widths[1:], strides, strict=False):
            layers += [nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(c_out), nn.ReLU()]
        # Crops are registered, so where a feature lies tells something: 4 x 4 places, not one mean.
        layers += [nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16 * widths[-1], 64), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        self.shape = nn.Linear(64, len(SHAPES) + 1)
        self.pattern = nn.Linear(64, len(PATTERNS))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, CROP, CROP) in [0, 1] -> logits (B, 7) of shapes and none, (B, 4) of patterns."""
        features = self.trunk(2 * image - 1)
        return self.shape(features), self.pattern(features)


@functools.cache
def load_classifier(path: Path = WEIGHTS) -> AttributeClassifier:
    """Read the trained classifier, float16 on disk, float32 in memory."""
    classifier = AttributeClassifier()
    classifier.load_state_dict(load_file(path))
    return classifier.requires_grad_(False).eval()


def read_shape(pixels: Pixels, scene: Scene, index: int) -> str:
    """Return the shape of an object in (SIZE, SIZE, 3) uint8 pixels, or `NONE`."""
    logits, _ = load_classifier()(to_tensor(crop(pixels, scene, index)[None]))
    return (*SHAPES, NONE)[int(logits.argmax())]


def read_pattern(pixels: Pixels, scene: Scene, index: int) -> str:
    """Return an object's pattern; it says nothing where `read_shape` is `NONE`."""
    _, logits = load_classifier()(to_tensor(crop(pixels, scene, index)[None]))
    return PATTERNS[int(logits.argmax())]


def to_tensor(images: Pixels) -> Tensor:
    """(B, H, W, C) uint8 -> (B, C, H, W) float32 in [0, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def erased(scene: Scene, index: int) -> Pixels:
    """Render the scene without one of its objects, (SIZE, SIZE, 3) uint8."""
    cover = object_mask(scene, index)[..., None] > 0
    return np.where(cover, render(Scene((), scene.background, scene.seed)), render(scene))


def accuracy(count: int = 300) -> dict[str, float]:
    """Return the shares of right readings over held-out renders.

    `clean`, `blurred` (sigma 1 pixel) and, of what is read where it stands, `moved`: blurred, and
    shifted by up to 12 pixels each way. `absent` is the share of erased objects whose shape is read
    as `NONE`.
    """
    right: dict[str, list[bool]] = {}
    rng = np.random.default_rng(HELD_OUT_SEED)
    for seed in range(HELD_OUT_SEED, HELD_OUT_SEED + count):
        scene = random_scene(seed)
        shift = rng.integers(-MOVED, MOVED + 1, size=2)
        for name, sigma, (dx, dy) in (
            ("clean", 0.0, (0, 0)),
            ("blurred", 1.0, (0, 0)),
            ("moved", 1.0, shift),
        ):
            pixels = _shifted(blurred(render(scene), sigma), dx, dy)
            marks = {}
            for index, thing in enumerate(scene.objects):
                gone = _shifted(blurred(erased(scene, index), sigma), dx, dy)
                marks["shape"] = read_shape(pixels, scene, index) == thing.shape
                marks["pattern"] = read_pattern(pixels, scene, index) == thing.pattern
                marks["absent"] = read_shape(gone, scene, index) == NONE
                if name != "moved":
                    marks["colour"] = read_colour(pixels, scene, index) == thing.colour
                    marks["background"] = read_background(pixels, scene) == scene.background
                for what, mark in marks.items():
                    right.setdefault(f"{what} {name}", []).append(mark)
    return {what: float(np.mean(marks)) for what, marks in right.items()}


def _shifted(pixels: Pixels, dx: int, dy: int) -> Pixels:
    """Move an image right and down by up to `MOVED` pixels; its edges are repeated."""
    wide = np.pad(pixels, ((MOVED, MOVED), (MOVED, MOVED), (0, 0)), mode="edge")
    return wide[MOVED - dy : MOVED - dy + SIZE, MOVED - dx : MOVED - dx + SIZE].copy()


def blurred(pixels: Pixels, sigma: float) -> Pixels:
    """Blur an image (H, W, 3) by a Gaussian of `sigma` pixels."""
    return np.array(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(sigma)))


if __name__ == "__main__":
    print(json.dumps(accuracy(), indent=1))
