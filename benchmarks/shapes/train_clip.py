"""Train the embedded world's CLIP from a seed.

    python benchmarks/shapes/train_clip.py --out train

It is open_clip's own model in open_clip's own folder layout: a ModifiedResNet and a text
transformer on CLIP's tokens. Each image is held against all captions of its batch and against
captions of its own that are wrong in one thing. The state is written now and then, and a run that
was ended goes on.
"""

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from dataset import load_pixels
from scene import BACKGROUNDS, COLOURS, PATTERNS, SHAPES, Object, Scene, place, random_scene

FOLDER = Path(__file__).parents[2] / "weights_loader" / "shapes_clip"
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"

MODEL: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 128, "layers": [2, 2, 2, 1], "width": 8, "head_width": 64},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 3},
}
HALF = [0.5, 0.5, 0.5]
PREPROCESS: dict[str, Any] = {
    "mean": HALF, "std": HALF, "size": 128, "mode": "RGB", "interpolation": "bicubic",
    "resize_mode": "shortest",
}  # fmt: skip

GRAMMAR: dict[str, Any] = {
    "phrase": [["" if p == "plain" else p for p in PATTERNS], list(COLOURS), list(SHAPES)],
    "distinct": [1, 2],
    "most": 2,
    "ends": [place(background) for background in BACKGROUNDS],
}
"""What a caption of this world can be, as `nti.evaluation.grammar` reads it: one phrase or two, a
word of each slot, then an end. Two phrases of a caption differ in the slots that are `distinct`."""

WRONG = 5
"""Wrong captions of each image."""


def wrong_caption(scene: Scene, rng: np.random.Generator) -> str:
    """Return a caption that is wrong in one thing."""
    index = int(rng.integers(len(scene.objects)))
    thing = scene.objects[index]
    kind = rng.choice(["shape", "colour", "pattern", "background", "count", "swap"])
    if kind == "background":
        return scene.with_background(_other(rng, BACKGROUNDS, scene.background)).caption()
    if kind == "count" or (kind == "swap" and len(scene.objects) == 1):
        return _recounted(scene, index, rng).caption()
    if kind == "swap":
        return _swapped(scene, rng).caption()
    words = {"shape": SHAPES, "colour": COLOURS, "pattern": PATTERNS}[kind]
    return scene.with_object(index, **{kind: _other(rng, words, getattr(thing, kind))}).caption()


def _recounted(scene: Scene, index: int, rng: np.random.Generator) -> Scene:
    """One object fewer, or one more."""
    if len(scene.objects) == 2:
        return replace(scene, objects=(scene.objects[index],))
    thing = scene.objects[0]
    shape, colour = _other(rng, SHAPES, thing.shape), _other(rng, COLOURS, thing.colour)
    more = Object(shape, colour, str(rng.choice(PATTERNS)))
    return replace(scene, objects=(thing, more) if rng.random() < 0.5 else (more, thing))


def _swapped(scene: Scene, rng: np.random.Generator) -> Scene:
    """The two objects exchange their places or one attribute; patterns may be alike."""
    left, right = scene.objects
    name = str(rng.choice(["shape", "colour", "pattern", "place"]))
    if name == "place" or getattr(left, name) == getattr(right, name):
        return replace(scene, objects=(right, left))
    taken = {name: getattr(right, name)}, {name: getattr(left, name)}
    return replace(scene, objects=(replace(left, **taken[0]), replace(right, **taken[1])))


def _other(rng: np.random.Generator, words: Any, word: str) -> str:
    return str(rng.choice([w for w in words if w != word]))


def inputs(pixels: NDArray[np.uint8], generator: torch.Generator | None = None) -> Tensor:
    """Return (B, 3, H, W) in [-1, 1]; with a generator a little blurred and noised, as edits."""
    images = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
    if generator is None:
        return images
    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    share = torch.rand(len(images), 1, 1, 1, generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    level = 0.06 * torch.rand(len(images), 1, 1, 1, generator=generator)
    return (images + share * (soft - images) + level * noise).clamp(-1, 1)


@dataclass
class Batch:
    """Images, the caption of each, and wrong ones of each."""

    images: Tensor
    right: Tensor
    wrong: Tensor

    @classmethod
    def draw(
        cls, pixels: NDArray[np.uint8], size: int, rng: np.random.Generator,
        generator: torch.Generator, tokenize: Any,
    ) -> "Batch":  # fmt: skip
        """Draw scenes without returning them."""
        seeds = np.sort(rng.choice(len(pixels), size, replace=False))
        scenes = [random_scene(int(seed)) for seed in seeds]
        wrong = [wrong_caption(scene, rng) for scene in scenes for _ in range(WRONG)]
        captions = [scene.caption() for scene in scenes]
        return cls(inputs(pixels[seeds], generator), tokenize(captions), tokenize(wrong))


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """CLIP's symmetric loss, with each image's own wrong captions among its candidates."""
    image = F.normalize(model.encode_image(batch.images), dim=-1)
    text = F.normalize(model.encode_text(torch.cat([batch.right, batch.wrong])), dim=-1)
    right, wrong = text[: len(image)], text[len(image) :].view(len(image), WRONG, -1)
    scale = model.logit_scale.exp()
    across = scale * image @ right.T
    own = scale * torch.einsum("bd,bkd->bk", image, wrong)
    target = torch.arange(len(image))
    of_images = F.cross_entropy(torch.cat([across, own], dim=1), target)
    return (of_images + F.cross_entropy(across.T, target)) / 2


def train(options: argparse.Namespace) -> None:
    """Train, and write the folder."""
    torch.manual_seed(options.seed)
    pixels = load_pixels(options.out / "clip-scenes.npy", options.scenes)
    model = open_clip.CLIP(**MODEL)
    tokenize = open_clip.SimpleTokenizer(context_length=MODEL["text_cfg"]["context_length"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.peak, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.peak, options.steps, pct_start=0.1
    )
    state, first, seconds = options.out / "clip-state.pt", 0, 0.0
    if state.exists():
        found = torch.load(state, weights_only=True)
        for part, name in ((model, "model"), (optimizer, "optimizer"), (schedule, "schedule")):
            part.load_state_dict(found[name])
        first, seconds = found["step"], found["seconds"]
    started = time.monotonic()
    for step in range(first, options.steps):
        rng = np.random.default_rng([options.seed, step])
        generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
        loss = loss_of(model, Batch.draw(pixels, options.batch, rng, generator, tokenize))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=np.log(100.0))
        if (step + 1) % 50 == 0:
            spent = seconds + time.monotonic() - started
            print(
                f"step {step + 1}/{options.steps} loss {loss.item():.4f} {spent:.0f} s", flush=True
            )
        if (step + 1) % 200 == 0 or step + 1 == options.steps:
            kept = {"step": step + 1, "seconds": seconds + time.monotonic() - started}
            parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
            torch.save({**kept, **{k: p.state_dict() for k, p in parts.items()}}, state)
    card = {
        "data": f"{options.scenes} scenes rendered by benchmarks/shapes/scene.py",
        "command": "python benchmarks/shapes/train_clip.py --out train",
        "seed": str(options.seed), "steps": str(options.steps), "batch": str(options.batch),
        "seconds": f"{seconds + time.monotonic() - started:.0f}", "torch": torch.__version__,
    }  # fmt: skip
    export(model, card)


def export(model: nn.Module, card: dict[str, str]) -> None:
    """Write open_clip's folder: float16 weights, rows of tokens that no caption uses zero."""
    tokenize = open_clip.SimpleTokenizer(context_length=MODEL["text_cfg"]["context_length"])
    words = {w for slot in GRAMMAR["phrase"] for w in slot} | {"a", "an", "and", *GRAMMAR["ends"]}
    used = tokenize(sorted(words)).unique()
    state = {name: value.detach() for name, value in model.state_dict().items()}
    table = torch.zeros_like(state["token_embedding.weight"])
    table[used] = state["token_embedding.weight"][used]
    state["token_embedding.weight"] = table
    FOLDER.mkdir(exist_ok=True)
    config = {"model_cfg": MODEL, "preprocess_cfg": PREPROCESS, "grammar": GRAMMAR}
    (FOLDER / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    # How many batches a norm has seen is of no use any more.
    halved = {k: v.half().contiguous() for k, v in state.items() if v.is_floating_point()}
    (FOLDER / WEIGHTS).write_bytes(save(halved, card))
    print(f"wrote {FOLDER}: {(FOLDER / WEIGHTS).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("train"))
    parser.add_argument("--scenes", type=int, default=24_000)
    parser.add_argument("--steps", type=int, default=3_000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--peak", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())
