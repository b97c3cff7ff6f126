"""Does an edited image show what was asked? Hue tells the colour, a small classifier the shape.

No reading looks at the diffusion model or its caption: only at pixels. An edit may move an object a
little, which the PSNRs count and the readings do not: shape and pattern are read where it stands.
`--train` trains the classifier and writes its weights next to this file.
"""

import argparse
import functools
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from safetensors.torch import load_file, save_file
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
    "NONE",
    "AttributeClassifier",
    "accuracy",
    "crop",
    "erased",
    "load_classifier",
    "psnr",
    "read_background",
    "read_colour",
    "read_pattern",
    "read_shape",
    "untouched_psnr",
]

Pixels = NDArray[np.uint8]

NONE = "none"
"""No object that can be recognised, or one of no colour that has a word."""

WEIGHTS = Path(__file__).with_name("attributes.safetensors")

TRAINING_SEED, HELD_OUT_SEED = 3_000_000, 4_000_000
"""Where the classifier's scenes start; the diffusion model's lie below."""

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
    return _cut(pixels, *_located(pixels, scene, index), _place(scene, index)[2])


def _located(pixels: Pixels, scene: Scene, index: int) -> tuple[float, float]:
    """Centre x, y of what stands out from the background in an object's half of the image.

    Its true place where nothing does.
    """
    places = [_place(scene, i) for i in range(len(scene.objects))]
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


def _place(scene: Scene, index: int) -> tuple[float, float, float]:
    """Centre x, y of an object's crop and half its side, in pixels."""
    # A circle's mask tells centre and radius, which depend on the seed but not on the shape.
    disc = object_mask(scene.with_object(index, shape="circle"), index)
    y, x = (float((disc * (axis + 0.5)).sum() / disc.sum()) for axis in np.indices(disc.shape))
    return x, y, REACH * float(np.sqrt(disc.sum() / np.pi)) / 0.98


def _cut(pixels: Pixels, x: float, y: float, half: float) -> Pixels:
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
    logits, _ = load_classifier()(_to_tensor(crop(pixels, scene, index)[None]))
    return (*SHAPES, NONE)[int(logits.argmax())]


def read_pattern(pixels: Pixels, scene: Scene, index: int) -> str:
    """Return an object's pattern; it says nothing where `read_shape` is `NONE`."""
    _, logits = load_classifier()(_to_tensor(crop(pixels, scene, index)[None]))
    return PATTERNS[int(logits.argmax())]


def _to_tensor(images: Pixels) -> Tensor:
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
            pixels = _shifted(_blurred(render(scene), sigma), dx, dy)
            marks = {}
            for index, thing in enumerate(scene.objects):
                gone = _shifted(_blurred(erased(scene, index), sigma), dx, dy)
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


def _blurred(pixels: Pixels, sigma: float) -> Pixels:
    return np.array(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(sigma)))


_Example = tuple[Pixels, Pixels, Pixels, int, int]
"""Crops of a scene, its background and its covers (one object's, all objects'); shape, pattern."""


def _examples(scenes: int) -> list[_Example]:
    """Render training scenes; each crop is a little off its place, as an edited object may be."""
    examples: list[_Example] = []
    rng = np.random.default_rng(TRAINING_SEED)
    for seed in range(TRAINING_SEED, TRAINING_SEED + scenes):
        scene = random_scene(seed)
        pixels, ground = render(scene), render(Scene((), scene.background, seed))
        covers = [object_mask(scene, i) for i in range(len(scene.objects))]
        for index, thing in enumerate(scene.objects):
            x, y, half = _place(scene, index)
            dx, dy, growth = rng.normal(0, (2.5, 2.5, 0.05))
            place = (x + dx, y + dy, half * (1 + growth))
            cover = np.stack([covers[index], np.maximum.reduce(covers), covers[index]], axis=2)
            layers = (pixels, ground, (255 * cover).astype(np.uint8))
            image, behind, masks = (_cut(layer, *place) for layer in layers)
            labels = SHAPES.index(thing.shape), PATTERNS.index(thing.pattern)
            examples.append((image, behind, masks, *labels))
    return examples


def _sample(examples: list[_Example], rng: np.random.Generator) -> tuple[Pixels, int, int]:
    """Draw a crop, its shape and its pattern (-100 where there is no object).

    A sixth shows nothing, torn pieces of a shape, or two shapes half through each other.
    """
    (image, _, masks, shape, pattern), (other, ground, _, other_shape, _) = (
        examples[i] for i in rng.integers(len(examples), size=2)
    )
    kind = rng.choice(["whole", "blank", "torn", "mixed"], p=[0.83, 0.06, 0.05, 0.06])
    if kind in ("blank", "torn") or rng.random() < 0.6:
        noise = Image.fromarray(rng.normal(size=(4, 4)).astype(np.float32))
        waves = np.asarray(noise.resize((CROP, CROP), Image.Resampling.BICUBIC))
        eaten = {"blank": True, "torn": waves > 0}.get(kind, False)
        own, every = masks[..., 0] / 255.0, masks[..., 1] / 255.0
        keep = np.clip(every - own * eaten, 0, 1)[..., None]
        image = (ground + keep * (image - ground.astype(np.float32))).astype(np.uint8)
    if kind == "mixed" and shape != other_shape:
        share = rng.uniform(0.4, 0.6)
        image = ((1 - share) * image + share * other).astype(np.uint8)
    elif kind not in ("blank", "torn"):
        return _augmented(image, rng), shape, pattern
    return _augmented(image, rng), len(SHAPES), -100


def _augmented(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Turn the hue, mirror, blur, tint, add noise, so that colour and sharpness tell nothing."""
    hsv = np.array(Image.fromarray(image).convert("HSV"))[:, :: rng.choice([-1, 1])]
    hsv[..., 0] += rng.integers(256, dtype=np.uint8)  # wraps around, as hue does
    turned = np.asarray(Image.fromarray(np.ascontiguousarray(hsv), "HSV").convert("RGB"))
    soft = _blurred(turned, rng.uniform(0, 1.4))
    tinted = soft * rng.normal(1, 0.08, size=3) + rng.normal(0, 8, size=3)
    noisy = tinted + rng.uniform(0, 10) * rng.normal(size=soft.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def train(scenes: int, steps: int, seed: int) -> None:
    """Train the classifier and write it to `WEIGHTS`, its held-out accuracy in the metadata."""
    examples = _examples(scenes)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    classifier = AttributeClassifier()
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    for step in range(1, steps + 1):
        images, *labels = zip(*(_sample(examples, rng) for _ in range(64)), strict=True)
        logits = classifier(_to_tensor(np.stack(images)))
        losses = [
            F.cross_entropy(guess, torch.tensor(label), label_smoothing=0.02)
            for guess, label in zip(logits, labels, strict=True)
        ]
        loss = torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}/{steps} loss {loss.item():.4f}", flush=True)
    state = classifier.state_dict()
    weights = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    save_file(weights, WEIGHTS)
    load_classifier.cache_clear()
    measured = json.dumps({k: round(v, 4) for k, v in accuracy().items()})
    settings = {"scenes": str(scenes), "steps": str(steps), "seed": str(seed)}
    save_file(weights, WEIGHTS, metadata={**settings, "accuracy": measured})
    print(measured)


def main() -> None:
    """Train the classifier, or print how accurate the readings are on held-out renders."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--train", action="store_true")
    torch.set_num_threads(1)
    if parser.parse_args().train:
        train(scenes=2000, steps=800, seed=0)
    else:
        print(json.dumps(accuracy(), indent=1))


if __name__ == "__main__":
    main()
