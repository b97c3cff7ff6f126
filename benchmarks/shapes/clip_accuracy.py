"""How often the small CLIP finds a held-out scene's caption; writes its rows and its model card.

    python benchmarks/shapes/clip_accuracy.py --out benchmarks/results/clip.csv

`search` is what `nti caption` does, `all` looks at every caption of the grammar, and `retrieval`
chooses among the captions of the scenes that are measured, or among their pictures. `seen` are
pictures as the embedded model's autoencoder gives them back, as edits are.
"""

import argparse
import csv
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from evaluate import TEST, held_out, to_pixels, to_tensor
from machine import commit, device, is_dirty
from nti import load_model
from nti.evaluation.captions import Chooser
from nti.evaluation.clip import embedded_clip, load_clip
from nti.evaluation.grammar import Grammar
from scene import Scene, render

CARD = embedded_clip() / "MODEL_CARD.md"


@dataclass(frozen=True)
class Row:
    """One figure."""

    name: str
    pictures: str
    scenes: int
    candidates: int
    value: float
    unit: str
    device: str
    torch: str
    commit: str
    dirty: bool


def main() -> None:
    """Measure, and write rows and card."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    scenes = held_out(TEST, options.scenes)
    clip = load_clip(None)
    grammar = Grammar.of(clip.config["grammar"])
    whole = [choice.caption() for choice in grammar.all()]
    everything = clip.texts(whole)
    rendered = [Image.fromarray(render(scene)) for scene in scenes]
    kinds = {"rendered": rendered, "seen": _seen(rendered)}
    rows = []
    for name, pictures in kinds.items():
        images = clip.images(pictures)
        best = (images @ everything.T).argmax(dim=1).tolist()
        right = [whole[i] == scene.caption() for i, scene in zip(best, scenes, strict=True)]
        rows.append(_row("all", name, right, len(whole)))
        chooser = Chooser(clip, grammar)
        started = time.perf_counter()
        found = chooser(pictures)
        seconds = (time.perf_counter() - started) / len(scenes)
        right = [text == scene.caption() for text, scene in zip(found, scenes, strict=True)]
        rows.append(_row("search", name, right, len(whole)))
        rows.append(_row("search, time an image", name, [seconds], len(whole), "s"))
        for way, hits in _retrieved(images, clip.texts([s.caption() for s in scenes]), scenes):
            rows.append(_row(way, name, hits, len(scenes)))
    for row in rows:
        print(f"{row.name}, {row.pictures}: {row.value} {row.unit}")
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    CARD.write_text(_card(rows), "utf-8")


def _seen(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Return pictures as the autoencoder gives them back."""
    model = load_model()
    found = []
    for picture in pictures:
        latent = model.encode_image(to_tensor([np.asarray(picture)]))
        found += [Image.fromarray(p) for p in to_pixels(model.decode_latent(latent))]
    return found


def _retrieved(
    images: Tensor, texts: Tensor, scenes: Sequence[Scene]
) -> list[tuple[str, list[bool]]]:
    """Whether an image's own caption is the best, and a caption's own image."""
    captions = [scene.caption() for scene in scenes]
    similar = images @ texts.T
    of_image, of_text = similar.argmax(dim=1).tolist(), similar.argmax(dim=0).tolist()
    return [
        ("retrieval of captions", [captions[j] == captions[i] for i, j in enumerate(of_image)]),
        ("retrieval of pictures", [captions[j] == captions[i] for i, j in enumerate(of_text)]),
    ]


def _row(
    name: str, pictures: str, values: Sequence[float], candidates: int, unit: str = "%"
) -> Row:
    value = sum(values) / len(values) * (100 if unit == "%" else 1)
    return Row(
        name, pictures, len(values) if unit == "%" else 0, candidates, round(value, 3), unit,
        device(), torch.__version__, commit(), is_dirty(),
    )  # fmt: skip


def _card(rows: Sequence[Row]) -> str:
    """Return the model card: what it is, how it was made, what was measured."""
    weights = embedded_clip() / "open_clip_model.safetensors"
    with safe_open(weights, "pt") as file:
        made, names = file.metadata(), list(file.keys())
        count = sum(file.get_tensor(name).numel() for name in names)
    table = [
        f"| {row.name}, {row.pictures} | {row.candidates:,} | {row.value:g} {row.unit} |"
        for row in rows
    ]
    scenes = max(row.scenes for row in rows)
    return "\n".join(
        [
            "# shapes_clip",
            "",
            "A small CLIP of the embedded model's procedural world. It captions the world's",
            "pictures, and measures how near an edit is to its words. It knows no photographs.",
            "",
            "| | |",
            "|---|---|",
            "| architecture | open_clip's CLIP: a ModifiedResNet of width 8 and a text transformer"
            f" of 3 layers and width 32, {count / 1e6:.2f} M numbers; rows of tokens that no"
            " caption has are zero |",
            f"| file | float16, {weights.stat().st_size / 1e6:.2f} MB, open_clip's folder layout;"
            " the configuration also holds the grammar of captions |",
            f"| data | {made['data']}, seeds 0 to {int(made['data'].split()[0]) - 1:,}; no other |",
            f"| command | `{made['command']}` |",
            f"| seed, steps, batch | {made['seed']}, {made['steps']}, {made['batch']} |",
            f"| time | {float(made['seconds']):,.0f} s on one CPU core that other work shared |",
            "",
            f"On {scenes} held-out scenes ({rows[0].device}, torch {rows[0].torch}, commit"
            f" {rows[0].commit}), by `python benchmarks/shapes/clip_accuracy.py`:",
            "",
            "| what | among | right |",
            "|---|---:|---:|",
            *table,
            "",
            "`all` looks at every caption of the grammar, `search` at as many as `nti caption`",
            "does, `retrieval` at those of the scenes measured. `rendered` pictures are exact,",
            "`seen` ones came through the embedded model's autoencoder, as edits do.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
