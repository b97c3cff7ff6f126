"""Train the classifier that reads shapes and patterns off edited images: two minutes on a CPU.

    python benchmarks/shapes/train_classifier.py

Writes its weights beside `measure.py`, which reads with them.
"""

import argparse
import json

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from measure import (
    CROP,
    WEIGHTS,
    AttributeClassifier,
    Pixels,
    accuracy,
    blurred,
    cut,
    load_classifier,
    place,
    to_tensor,
)
from scene import PATTERNS, SHAPES, Scene, object_mask, random_scene, render

__all__ = ["train"]

TRAINING_SEED = 3_000_000
"""Where its scenes start; the diffusion model's lie below, those of `accuracy` above."""

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
            x, y, half = place(scene, index)
            dx, dy, growth = rng.normal(0, (2.5, 2.5, 0.05))
            moved = (x + dx, y + dy, half * (1 + growth))
            cover = np.stack([covers[index], np.maximum.reduce(covers), covers[index]], axis=2)
            layers = (pixels, ground, (255 * cover).astype(np.uint8))
            image, behind, masks = (cut(layer, *moved) for layer in layers)
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
    soft = blurred(turned, rng.uniform(0, 1.4))
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
        logits = classifier(to_tensor(np.stack(images)))
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


if __name__ == "__main__":
    argparse.ArgumentParser(description=train.__doc__).parse_args()
    torch.set_num_threads(1)
    train(scenes=2000, steps=800, seed=0)
