"""Score the embedded model on held-out scenes; every figure becomes a row of a CSV file.

    python benchmarks/shapes/evaluate.py published default guidance --out benchmarks/results

`published`: the autoencoder's bound, plain DDIM inversion and null-text inversion at w = 7.5.
`default`: the same at the model's own guidance, and edits: whether the changed attribute is there,
and how much of the rest is kept. `guidance`: all of it over the guidance scale, on fewer scenes,
from which the default was chosen: other scenes than those that the first two score.
"""

import argparse
import csv
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dataset import HELD_OUT
from edits import EditCase, cases
from machine import commit, device, is_dirty
from measure import Pixels, psnr, untouched_psnr
from nti import (
    Inversion,
    InversionSettings,
    StableDiffusion,
    edit,
    invert_batch,
    load_model,
    sample,
)
from scene import Scene, random_scene, render

STEPS, INNER_STEPS = 50, 10
BATCH = 16
"""Scenes inverted at once."""
PUBLISHED_GUIDANCE = 7.5
CURVE = (1.5, 2.0, 3.0, 5.0, 7.5)


@dataclass(frozen=True)
class Row:
    """One figure."""

    scenes: int
    guidance: float
    name: str
    value: float
    unit: str
    dtype: str
    device: str
    torch: str
    commit: str
    dirty: bool


TEST, CHOICE = 1_000, 2_000
"""Where in the held-out seeds the figures' scenes start, and those that settings are chosen on."""


def held_out(first: int, count: int) -> list[Scene]:
    """Return scenes that neither training nor its log has looked at."""
    return [random_scene(seed) for seed in HELD_OUT[first : first + count]]


def to_tensor(pixels: Sequence[Pixels]) -> Tensor:
    """Stack (H, W, 3) uint8 images into (B, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def to_pixels(images: Tensor) -> list[Pixels]:
    """Turn (B, 3, H, W) in [-1, 1] into (H, W, 3) uint8 images."""
    scaled = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return list(scaled.permute(0, 2, 3, 1).cpu().numpy())


def invert_scenes(
    model: StableDiffusion, scenes: Sequence[Scene], guidance: float
) -> tuple[list[Inversion], Tensor]:
    """Null-text invert scenes at once; also return plain DDIM's z_0 at that guidance."""
    settings = InversionSettings(steps=STEPS, guidance_scale=guidance, inner_steps=INNER_STEPS)
    captions = [scene.caption() for scene in scenes]
    images = [Image.fromarray(render(scene)) for scene in scenes]
    inversions = invert_batch(model, images, captions, settings)
    plain = sample(
        model.steps,
        torch.stack([x.pivot[0] for x in inversions]).to(model.device),
        model.encode_text(captions),
        model.encode_text([""]).expand(STEPS, len(scenes), -1, -1),
        model.schedule(STEPS),
        guidance,
    )
    return inversions, plain[-1]


@dataclass
class Inverted:
    """Held-out scenes inverted at one guidance, with the PSNR of each way to come back."""

    scenes: list[Scene]
    inversions: list[Inversion]
    scores: dict[str, list[float]]


def invert_all(
    model: StableDiffusion, scenes: list[Scene], guidance: float, folder: Path
) -> Inverted:
    """Invert what `folder` does not hold; the null-text score samples again from z_T.

    Inversion takes most of the time, so each is saved, with plain DDIM's z_0, and taken from there
    by the next call. Delete the folder after training anew.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = Inverted(scenes, [], {"autoencoder": [], "ddim": [], "null-text": []})
    for start in range(0, len(scenes), BATCH):
        some = scenes[start : start + BATCH]
        files = [folder / f"{scene.seed}-w{guidance:g}.nti.safetensors" for scene in some]
        zeros = [folder / f"{scene.seed}-w{guidance:g}.ddim.pt" for scene in some]
        if not all(path.exists() for path in zeros):
            for file, zero, made, latent in zip(
                files, zeros, *invert_scenes(model, some, guidance), strict=True
            ):
                made.save(file)
                torch.save(latent.cpu().clone(), zero)
        inversions = [Inversion.load(path) for path in files]
        plain = torch.stack([torch.load(path) for path in zeros])
        again = sample(
            model.steps,
            torch.stack([x.pivot[0] for x in inversions]).to(model.device),
            model.encode_text([x.prompt for x in inversions]),
            torch.stack([x.uncond for x in inversions], dim=1).to(model.device),
            model.schedule(STEPS),
            guidance,
        )[-1]
        truth = [render(scene) for scene in some]
        bound = model.encode_image(to_tensor(truth))
        for name, latents in (("autoencoder", bound), ("ddim", plain), ("null-text", again)):
            images = to_pixels(model.decode_latent(latents))
            found.scores[name] += [psnr(a, b) for a, b in zip(images, truth, strict=True)]
        found.inversions += inversions
        print(f"w {guidance:g}: {len(found.inversions)} of {len(scenes)} inverted", flush=True)
    return found


@dataclass(frozen=True)
class EditScore:
    """What one edit came to."""

    seed: int
    source: str
    prompt: str
    kind: str
    expected: str
    found: str
    untouched: float
    """dB, NaN where nothing is untouched."""
    whole: float
    """dB."""

    @property
    def correct(self) -> bool:
        """Whether the changed attribute is there."""
        return self.found == self.expected


def score_edits(model: StableDiffusion, inverted: Inverted) -> list[EditScore]:
    """Make every kind of edit of every scene and compare with the true edited image."""
    scores = []
    for scene, inversion in zip(inverted.scenes, inverted.inversions, strict=True):
        for case in cases(scene):
            image = np.asarray(edit(model, inversion, case.prompt, **case.settings).images[0])
            scores.append(score_edit(case, scene, image))
    return scores


def score_edit(case: EditCase, scene: Scene, image: Pixels) -> EditScore:
    """Read the changed attribute from the pixels; PSNR against the true edited image."""
    truth = render(case.edited)
    try:
        untouched = untouched_psnr(image, truth, render(scene))
    except ValueError:  # nothing is untouched
        untouched = float("nan")
    return EditScore(
        seed=scene.seed,
        source=scene.caption(),
        prompt=case.prompt,
        kind=case.kind,
        expected=case.expected,
        found=case.read(image),
        untouched=round(untouched, 2),
        whole=round(psnr(image, truth), 2),
    )


def edit_figures(scores: Sequence[EditScore]) -> Iterator[tuple[str, float, str]]:
    """Yield (name, value, unit) over all edits and for each kind."""
    for kind in ("all", *dict.fromkeys(s.kind for s in scores)):
        some = [s for s in scores if kind in ("all", s.kind)]
        kept = [s.untouched for s in some if not np.isnan(s.untouched)]
        yield f"{kind} correct", 100.0 * mean(s.correct for s in some), "%"
        yield f"{kind} untouched mean", mean(kept), "dB"
        yield f"{kind} untouched median", median(kept), "dB"
        yield f"{kind} untouched 25 dB or more", 100.0 * mean(k >= 25.0 for k in kept), "%"
        yield f"{kind} whole mean", mean(s.whole for s in some), "dB"


def published(model: StableDiffusion, options: argparse.Namespace) -> Iterator[Row]:
    """Yield reconstruction at the published guidance."""
    inverted = invert_all(model, held_out(TEST, options.scenes), PUBLISHED_GUIDANCE, options.work)
    yield from _reconstruction_rows(inverted, PUBLISHED_GUIDANCE)


def default(model: StableDiffusion, options: argparse.Namespace) -> Iterator[Row]:
    """Yield reconstruction and edits at the model's own guidance."""
    w = model.config.guidance_scale
    inverted = invert_all(model, held_out(TEST, options.scenes), w, options.work)
    yield from _reconstruction_rows(inverted, w)
    scores = score_edits(model, inverted)
    _write(scores, options.out / "shapes-edits.csv")
    yield from _edit_rows(scores, inverted, w)


def guidance(model: StableDiffusion, options: argparse.Namespace) -> Iterator[Row]:
    """Yield both over the guidance scale, on fewer scenes."""
    for w in CURVE:
        inverted = invert_all(model, held_out(CHOICE, options.curve_scenes), w, options.work)
        yield from _reconstruction_rows(inverted, w)
        yield from _edit_rows(score_edits(model, inverted), inverted, w)


SECTIONS = {"published": published, "default": default, "guidance": guidance}


def main() -> None:
    """Run the sections that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="+", choices=SECTIONS)
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--curve-scenes", type=int, default=16)
    parser.add_argument("--work", type=Path, default=Path("train/inversions"))
    parser.add_argument("--checkpoint", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    model = load_model(options.checkpoint)
    started = time.monotonic()
    for section in options.sections:
        rows = list(SECTIONS[section](model, options))
        for row in rows:
            print(f"w {row.guidance:g}: {row.name}: {row.value:g} {row.unit}")
        _write(rows, options.out / f"shapes-{section}.csv")
    print(f"{time.monotonic() - started:.0f} s")


def _reconstruction_rows(inverted: Inverted, guidance: float) -> list[Row]:
    scores = inverted.scores
    count = len(inverted.scenes)
    return [_row(count, guidance, n, mean(v), "dB") for n, v in scores.items()]


def _edit_rows(scores: Sequence[EditScore], inverted: Inverted, guidance: float) -> list[Row]:
    count = len(inverted.scenes)
    return [_row(count, guidance, *figure) for figure in edit_figures(scores)]


def _row(scenes: int, guidance: float, name: str, value: float, unit: str) -> Row:
    return Row(
        scenes=scenes,
        guidance=guidance,
        name=name,
        value=round(value, 3),
        unit=unit,
        dtype="float16" if torch.cuda.is_available() else "float32",
        device=device(),
        torch=torch.__version__,
        commit=commit(),
        dirty=is_dirty(),
    )


def _write(rows: Sequence[Row] | Sequence[EditScore], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(rows[0])])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    print(f"wrote {path}", flush=True)


if __name__ == "__main__":
    main()
