"""Every inversion method with every editor, on scenes whose true edit is known.

    python benchmarks/shapes/pairs.py --scenes 50 --out benchmarks/results/pairs.csv

Each scene gives four edits: colour, shape, pattern, background. A row holds one (method, editor,
scene, edit). Rows are written as they are found, and a run that was ended goes on with the next
one: the same command again. `--part 1/2` and `--part 2/2` share the scenes between two processes,
each with a file of its own.
"""

import argparse
import csv
import hashlib
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import nti
from edits import KINDS, EditCase, cases, true_mask
from evaluate import TEST, held_out, to_pixels
from machine import commit, commit_of, device, is_dirty
from measure import Pixels, psnr
from nti import Inversion, InversionSettings, StableDiffusion
from nti.inversion.methods import METHODS
from nti.inversion.provenance import describe_versions
from passes import counting, gflop_of
from scene import Scene, render
from truth import Nearness, nearness

BATCH = 10
"""Scenes inverted at once, and taken through all methods and editors before the next ones."""


@dataclass(frozen=True)
class PairRow(Nearness):
    """One edit of one scene."""

    method: str
    editor: str
    seed: int
    kind: str
    expected: str
    found: str
    correct: bool
    reconstruction: float
    """dB of the source's picture."""
    inversion_gflop: float
    edit_gflop: float
    """A share of that of the scene's edits, which are made at once, as the next is."""
    edit_seconds: float
    steps: int
    inner_steps: int
    guidance: float
    device: str
    torch: str
    commit: str
    dirty: bool


Editor = Callable[[StableDiffusion, Inversion, Sequence[EditCase], Scene], Sequence[Image.Image]]
"""Makes all edits of a scene: at once where the editor can, as they then share the source."""


def prompt_to_prompt(
    model: StableDiffusion, inversion: Inversion, edits: Sequence[EditCase], scene: Scene
) -> Sequence[Image.Image]:
    """With the windows that were chosen for each kind of edit, on other scenes."""
    names = dict.fromkeys(name for case in edits for name in case.settings)
    settings: dict[str, Any] = {name: [c.settings.get(name) for c in edits] for name in names}
    return nti.edit(model, inversion, _prompts(edits), **settings).images


def sdedit(
    model: StableDiffusion, inversion: Inversion, edits: Sequence[EditCase], scene: Scene
) -> Sequence[Image.Image]:
    """From the image under noise."""
    return nti.sdedit(
        model, inversion, _prompts(edits), strength=STRENGTH["sdedit"], seed=scene.seed
    ).images


def masked(
    model: StableDiffusion, inversion: Inversion, edits: Sequence[EditCase], scene: Scene
) -> Sequence[Image.Image]:
    """In the true mask of what the words name: a user would draw it."""
    return [
        nti.masked(
            model, inversion, case.prompt, mask=true_mask(case, scene),
            strength=STRENGTH["masked"], seed=scene.seed,
        ).images[0]
        for case in edits
    ]  # fmt: skip


def diffedit(
    model: StableDiffusion, inversion: Inversion, edits: Sequence[EditCase], scene: Scene
) -> Sequence[Image.Image]:
    """In a mask that it finds itself."""
    return nti.diffedit(model, inversion, _prompts(edits), seed=scene.seed).images


def masactrl(
    model: StableDiffusion, inversion: Inversion, edits: Sequence[EditCase], scene: Scene
) -> Sequence[Image.Image]:
    """With the source's keys and values of self-attention."""
    return nti.masactrl(model, inversion, _prompts(edits)).images


def imagic(
    model: StableDiffusion, inversion: Inversion, edits: Sequence[EditCase], scene: Scene
) -> Sequence[Image.Image]:
    """With fewer iterations than are published, and longer ones, for this small model."""
    return nti.imagic(model, inversion, _prompts(edits), seed=scene.seed, **IMAGIC).images


def unitune(
    model: StableDiffusion, inversion: Inversion, edits: Sequence[EditCase], scene: Scene
) -> Sequence[Image.Image]:
    """With fewer iterations than are published."""
    return nti.unitune(model, inversion, _prompts(edits), seed=scene.seed, **UNITUNE).images


def _prompts(edits: Sequence[EditCase]) -> list[str]:
    return [case.prompt for case in edits]


STRENGTH = {"sdedit": 0.7, "masked": 0.8}
IMAGIC: dict[str, Any] = {
    "embedding_steps": 60, "embedding_learning_rate": 1e-2,
    "model_steps": 60, "model_learning_rate": 1e-4,
}  # fmt: skip
UNITUNE: dict[str, Any] = {"iterations": 25, "batch": 4}

EDITORS: dict[str, Editor] = {
    "p2p": prompt_to_prompt,
    "sdedit": sdedit,
    "masked": masked,
    "diffedit": diffedit,
    "masactrl": masactrl,
    "imagic": imagic,
    "unitune": unitune,
}

EMBEDDING_ONLY = ("sdedit", "masked")
"""Editors that take nothing of an inversion but its embeddings and steps, and the image."""

IMAGE_ONLY = ("imagic", "unitune")
"""Those that take nothing but the steps, the guidance and the image."""

TRAINING = {
    "imagic": len(KINDS) * (2 * IMAGIC["embedding_steps"] + 3 * IMAGIC["model_steps"]),
    "unitune": 3 * UNITUNE["iterations"] * UNITUNE["batch"],
}
"""Passes of an editor that trains, of all edits of a scene, as forward ones: a backward pass takes
as much to the embedding, and twice as much to the weights.
"""


def has_meaning(method: str, editor: str) -> bool:
    """Whether a pair is worth a row: an editor that asks for the embeddings alone gives the same
    for all methods that learn none, and one that asks for the image alone for all methods.
    """
    row = METHODS[method]
    if editor in IMAGE_ONLY:
        return method == "autoencoder"
    if editor not in EMBEDDING_ONLY:
        return row.sampled
    own_null = row.edits_start == "own" and (row.learns == "null" or row.start == "prompt")
    return own_null or row.edits_mix < 1 or method == "autoencoder"


def inverted(
    model: StableDiffusion, scenes: Sequence[Scene], settings: InversionSettings, work: Path
) -> Iterator[tuple[Scene, Inversion, float]]:
    """Yield each scene's inversion, from `work` if it is there, and the GFLOP that it took.

    All are inverted at once.

    What lies there is known by its settings and by the commit of the code that made it. Delete the
    folder after training anew.
    """
    work.mkdir(parents=True, exist_ok=True)
    forward, backward = gflop_of(model)
    asked = json.dumps([settings.table(model), describe_versions(model), commit_of("nti")])
    name = f"{settings.method}-{hashlib.sha256(asked.encode()).hexdigest()[:12]}"
    paths = [work / f"{name}-{scene.seed}.nti.safetensors" for scene in scenes]
    costs = [path.with_suffix(".gflop") for path in paths]
    if not all(path.exists() for path in (*paths, *costs)):
        counted, passes = counting(model)
        images = [Image.fromarray(render(scene)) for scene in scenes]
        captions = [scene.caption() for scene in scenes]
        for path, cost, made in zip(
            paths, costs, nti.invert_batch(counted, images, captions, settings), strict=True
        ):
            made.save(path)
            spent = passes.forward * forward + passes.backward * backward
            cost.write_text(f"{spent / len(scenes):.1f}")  # the mean of the batch
    for scene, path, cost in zip(scenes, paths, costs, strict=True):
        yield scene, Inversion.load(path), float(cost.read_text())


def score(
    model: StableDiffusion,
    scene: Scene,
    inversion: Inversion,
    cost: float,
    reconstruction: float,
    editor: str,
    settings: InversionSettings,
    gflop: float,
) -> Iterator[PairRow]:
    """Make a scene's edits and hold them against the truth; a forward pass takes `gflop`."""
    counted, passes = counting(model)
    edits = list(cases(scene))
    started = time.perf_counter()
    images = EDITORS[editor](counted, inversion, edits, scene)
    seconds = time.perf_counter() - started
    made = passes.forward + TRAINING.get(editor, 0)
    for case, image in zip(edits, images, strict=True):
        pixels: Pixels = np.asarray(image)
        near = nearness(pixels, render(case.edited), render(scene))
        found = case.read(pixels)
        yield PairRow(
            **{name: _rounded(value) for name, value in asdict(near).items()},
            method=settings.method,
            editor=editor,
            seed=scene.seed,
            kind=case.kind,
            expected=case.expected,
            found=found,
            correct=found == case.expected,
            reconstruction=_rounded(reconstruction),
            inversion_gflop=cost,
            edit_gflop=round(made * gflop / len(edits), 1),
            edit_seconds=round(seconds / len(edits), 2),
            steps=settings.steps,
            inner_steps=settings.inner_steps,
            guidance=inversion.guidance_scale,
            device=device(),
            torch=torch.__version__,
            commit=commit(),
            dirty=is_dirty(),
        )


def _rounded(value: float) -> float:
    return round(value, 4) if math.isfinite(value) else value


def done_already(path: Path) -> set[tuple[str, ...]]:
    """Return (method, editor, seed) of the rows that a file has."""
    if not path.exists():
        return set()
    with path.open(newline="") as file:
        return {(r["method"], r["editor"], r["seed"]) for r in csv.DictReader(file)}


def main() -> None:
    """Write the rows that are missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--editors", nargs="+", choices=EDITORS, default=list(EDITORS))
    parser.add_argument("--scenes", type=int, default=50)
    parser.add_argument("--first", type=int, default=TEST, help="where in the held-out seeds")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--inner-steps", type=int, default=10)
    parser.add_argument("--guidance", type=float, help="w (default: the model's own)")
    parser.add_argument("--part", default="1/1", metavar="I/N")
    parser.add_argument("--work", type=Path, default=Path("train/pairs"))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="edit:")  # of edits that change nothing: scored so
    warnings.filterwarnings("ignore", message=".*was never trained on 'beikkpic'")  # as UniTune has
    model = nti.load_model()
    part, parts = (int(x) for x in options.part.split("/"))
    scenes = held_out(options.first, options.scenes)[part - 1 :: parts]
    known = done_already(options.out)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("a", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(PairRow)])
        if not known:
            writer.writeheader()
        for start in range(0, len(scenes), BATCH):
            some = scenes[start : start + BATCH]
            for method in options.methods:
                for rows in pairs(model, some, method, options, known):
                    writer.writerows(asdict(row) for row in rows)
                    file.flush()
            print(f"{start + len(some)} of {len(scenes)} scenes", flush=True)


def pairs(
    model: StableDiffusion,
    scenes: Sequence[Scene],
    method: str,
    options: argparse.Namespace,
    known: set[tuple[str, ...]],
) -> Iterator[list[PairRow]]:
    """Yield the rows of a method that are not known, those of a scene and an editor together."""
    gflop, _ = gflop_of(model)
    iterates = "inner_steps" in METHODS[method].settings
    settings = InversionSettings(
        steps=options.steps, method=method, guidance_scale=options.guidance,
        **({"inner_steps": options.inner_steps} if iterates else {}),
    )  # fmt: skip
    asked = [
        (editor, scene.seed)
        for scene in scenes
        for editor in options.editors
        if has_meaning(method, editor) and (method, editor, str(scene.seed)) not in known
    ]
    if not asked:
        return
    for scene, inversion, cost in inverted(model, scenes, settings, options.work):
        latent = nti.reconstruct_latents(model, inversion)[-1]
        reconstruction = psnr(to_pixels(model.decode_latent(latent))[0], render(scene))
        for editor, seed in asked:
            if seed == scene.seed:
                yield list(
                    score(model, scene, inversion, cost, reconstruction, editor, settings, gflop)
                )


if __name__ == "__main__":
    main()
