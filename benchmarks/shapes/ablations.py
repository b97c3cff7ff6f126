"""The null-text paper's figures, on scenes whose true edit is known.

    python benchmarks/shapes/ablations.py iterations strength guidance captions background

`iterations` (Fig. 4): PSNR of the reconstruction over the work of the UNet, for every method.
`strength` (Fig. 8): how much is kept and how much is edited by SDEdit over its strength, with and
without an inversion. `guidance` (Fig. 9): DDIM inversion at guidance 1 to 8, whether z_T is still
like noise, and what comes back. `captions` (Fig. 12): inversion with another image's caption.
`background` is no figure of the paper: what serves edits of the background, the weakest kind here.

Each section becomes a file of rows. All are at the paper's w = 7.5 but `strength` and `background`,
which are at the model's own.
"""

import argparse
import csv
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import nti
from edits import EditCase, cases, true_mask
from evaluate import TEST, held_out, to_pixels, to_tensor
from machine import commit, device, is_dirty
from measure import psnr
from nti import Inversion, InversionSettings, StableDiffusion
from nti.inversion.ddim import ddim_invert
from nti.inversion.methods import METHODS
from nti.sampling.step import guided_noise
from passes import counting, gflop_of
from scene import Scene, render
from truth import nearness

PUBLISHED_GUIDANCE = 7.5
ITERATIONS = (1, 2, 5, 10)
"""N, of each of the T timesteps."""
STRENGTHS = tuple(k / 10 for k in range(1, 10))
SCALES = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)
RESAMPLES = 2000


@dataclass(frozen=True)
class Figure:
    """A mean over scenes, with the interval in which it lies with 95 % (bootstrap)."""

    section: str
    name: str
    """What is plotted."""
    case: str
    """Of which method or arm."""
    x: float
    """Where on the axis."""
    value: float
    low: float
    high: float
    unit: str
    gflop: float
    """Of the UNet for one image; 0: not counted."""
    seconds: float
    """Of all scenes together, once; 0: not measured."""
    scenes: int
    steps: int
    device: str
    torch: str
    commit: str
    dirty: bool


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean and its 95 % interval, by drawing scenes again (Efron 1979)."""
    found: NDArray[np.float64] = np.array([v for v in values if math.isfinite(v)])
    if not found.size:
        return math.nan, math.nan, math.nan
    draws = np.random.default_rng(0).integers(len(found), size=(RESAMPLES, len(found)))
    low, high = np.quantile(found[draws].mean(axis=1), [0.025, 0.975])
    return float(found.mean()), float(low), float(high)


Arm = Callable[[StableDiffusion, Inversion, EditCase, Scene], Image.Image]
"""One way to make an edit."""


@dataclass(frozen=True)
class Bench:
    """What the sections share."""

    model: StableDiffusion
    scenes: list[Scene]
    steps: int
    gflop: tuple[float, float]

    @property
    def captions(self) -> list[str]:
        """The scenes' own."""
        return [scene.caption() for scene in self.scenes]

    def figure(
        self, section: str, name: str, case: str, x: float, values: Sequence[float], unit: str,
        *, gflop: float = 0.0, seconds: float = 0.0,
    ) -> Figure:  # fmt: skip
        """Fill in interval, machine and versions."""
        mean, low, high = (round(v, 3) for v in interval(values))
        return Figure(
            section, name, case, x, mean, low, high, unit, round(gflop, 1), round(seconds, 1),
            len(self.scenes), self.steps, device(), torch.__version__, commit(), is_dirty(),
        )  # fmt: skip

    def reconstructions(self, latents: Tensor) -> list[float]:
        """Decode z_0 (B, 4, h, w) and return each image's PSNR."""
        pictures = to_pixels(self.model.decode_latent(latents))
        return [psnr(a, render(s)) for a, s in zip(pictures, self.scenes, strict=True)]

    def inverted(
        self, captions: list[str], settings: InversionSettings
    ) -> tuple[list[Inversion], float, float]:
        """Invert all scenes; return the inversions, GFLOP an image, and seconds."""
        counted, passes = counting(self.model)
        images = [Image.fromarray(render(scene)) for scene in self.scenes]
        started = time.perf_counter()
        made = nti.invert_batch(counted, images, captions, settings)
        seconds = time.perf_counter() - started
        work = passes.forward * self.gflop[0] + passes.backward * self.gflop[1]
        return made, work / len(made), seconds

    def sampled_again(self, inversions: list[Inversion]) -> list[float]:
        """Return the PSNR of each reconstruction."""
        found = [nti.reconstruct_latents(self.model, made)[-1] for made in inversions]
        return self.reconstructions(torch.cat(found))


def scored(
    scene: Scene, edits: Sequence[EditCase], images: Sequence[Image.Image]
) -> tuple[float, float]:
    """Return what a scene's edits keep, in dB, and the share that is there, in percent.

    One number a scene: its edits are not independent.
    """
    found: list[tuple[float, float]] = []
    for edit, image in zip(edits, images, strict=True):
        pixels = np.asarray(image)
        near = nearness(pixels, render(edit.edited), render(scene))
        found.append((near.psnr_outside, 100.0 * (edit.read(pixels) == edit.expected)))
    return mean(k for k, _ in found if math.isfinite(k)), mean(r for _, r in found)


def iterations(bench: Bench) -> Iterator[Figure]:
    """Yield Fig. 4: no early stop, so N iterations are N."""
    for name, row in METHODS.items():
        if name == "null-text-single-branch":
            continue  # the same reconstruction as null-text's
        for count in ITERATIONS if "inner_steps" in row.settings else (0,):  # 0: it has no N
            given = {"inner_steps": count, "threshold": lambda index, steps: 0.0}
            settings = InversionSettings(
                steps=bench.steps, method=name, guidance_scale=PUBLISHED_GUIDANCE,
                **{key: value for key, value in given.items() if key in row.settings},
            )  # fmt: skip
            made, gflop, seconds = bench.inverted(bench.captions, settings)
            found = bench.sampled_again(made)
            yield bench.figure(
                "iterations", "reconstruction", name, count, found, "dB", gflop=gflop,
                seconds=seconds,
            )  # fmt: skip


def captions(bench: Bench) -> Iterator[Figure]:
    """Yield Fig. 12: every image with its own caption, and with its neighbour's."""
    arms = {"own": bench.captions, "another image's": [*bench.captions[1:], bench.captions[0]]}
    for case, texts in arms.items():
        for count in ITERATIONS:
            settings = InversionSettings(
                steps=bench.steps, inner_steps=count, guidance_scale=PUBLISHED_GUIDANCE,
                threshold=lambda index, steps: 0.0,
            )  # fmt: skip
            made, gflop, _ = bench.inverted(texts, settings)
            found = bench.sampled_again(made)
            yield bench.figure("captions", "reconstruction", case, count, found, "dB", gflop=gflop)


def strength(bench: Bench) -> Iterator[Figure]:
    """Yield Fig. 8: SDEdit with psi("") and with the embeddings of null-text inversion."""
    for case, method in (("SDEdit", "autoencoder"), ("SDEdit and null-text", "null-text")):
        settings = InversionSettings(steps=bench.steps, method=method)
        made, _, _ = bench.inverted(bench.captions, settings)
        for share in STRENGTHS:
            found = []
            for scene, inversion in zip(bench.scenes, made, strict=True):
                edits = list(cases(scene))
                images = nti.sdedit(
                    bench.model, inversion, [edit.prompt for edit in edits], strength=share,
                    seed=scene.seed,
                ).images  # fmt: skip
                found.append(scored(scene, edits, images))
            kept, right = zip(*found, strict=True)
            yield bench.figure("strength", "kept", case, share, kept, "dB")
            yield bench.figure("strength", "edited", case, share, right, "%")


def background(bench: Bench) -> Iterator[Figure]:
    """Yield how often the background is right, and what the objects before it keep."""
    for name, arms in BACKGROUND.items():
        settings = InversionSettings(steps=bench.steps, method=name)
        made, _, _ = bench.inverted(bench.captions, settings)
        for arm, edited in arms.items():
            found: list[tuple[float, float, float]] = []
            for scene, inversion in zip(bench.scenes, made, strict=True):
                case = next(each for each in cases(scene) if each.kind == "background")
                pixels = np.asarray(edited(bench.model, inversion, case, scene))
                near = nearness(pixels, render(case.edited), render(scene))
                right = 100.0 * (case.read(pixels) == case.expected)
                found.append((right, near.psnr_outside, near.psnr_inside))
            right, outside, inside = zip(*found, strict=True)
            for what, values, unit in (
                ("correct", right, "%"), ("objects", outside, "dB"), ("background", inside, "dB"),
            ):  # fmt: skip
                yield bench.figure("background", what, f"{name}, {arm}", 0, values, unit)


def _words_alone(**settings: Any) -> Arm:
    """Prompt-to-Prompt that injects no attention."""

    def edited(model: StableDiffusion, made: Inversion, case: EditCase, _: Scene) -> Image.Image:
        free = {"cross_replace": 0.0, "self_replace": 0.0, **settings}
        return nti.edit(model, made, case.prompt, **free).images[0]

    return edited


def _without_objects(
    model: StableDiffusion, made: Inversion, case: EditCase, scene: Scene
) -> Image.Image:
    """The same, where the objects' words do not attend."""
    words = tuple(dict.fromkeys(each.shape for each in scene.objects))
    return _words_alone(subtract=(words, words))(model, made, case, scene)


def _in_the_mask(strength: float) -> Arm:
    """Blended latent diffusion outside of the objects, as a user would draw it."""

    def edited(
        model: StableDiffusion, made: Inversion, case: EditCase, scene: Scene
    ) -> Image.Image:
        mask = true_mask(case, scene)
        return nti.masked(
            model, made, case.prompt, mask=mask, strength=strength, seed=scene.seed
        ).images[0]

    return edited


BACKGROUND: dict[str, dict[str, Arm]] = {
    "null-text": {
        "no injection": _words_alone(),
        "objects subtracted": _without_objects,
        "masked, 0.8 of the steps": _in_the_mask(0.8),
        "masked, 0.9 of the steps": _in_the_mask(0.9),
    },
    "negative-prompt": {"no injection": _words_alone()},
    "direct": {"no injection": _words_alone()},
    "edit-friendly": {
        "no injection": _words_alone(),
        "from step 2": _words_alone(start=2),
        "from step 4": _words_alone(start=4),
    },
}


def guidance(bench: Bench) -> Iterator[Figure]:
    """Yield Fig. 9: inversion with guided noise, and sampling with the same."""
    model = bench.model
    schedule = model.schedule(bench.steps)
    cond = model.encode_text(bench.captions)
    null = model.encode_text([""]).expand_as(cond).contiguous()
    latent = model.encode_image(to_tensor([render(scene) for scene in bench.scenes]))
    for w in SCALES:

        def guided(z: Tensor, t: Tensor, context: Tensor, w: float = w) -> Tensor:
            both = model.steps.noise(torch.cat([z, z]), t, torch.cat([null, context]))
            return guided_noise(*both.chunk(2), w)

        pivot = ddim_invert(dataclasses.replace(model.steps, noise=guided), latent, cond, schedule)
        every = null.expand(bench.steps, *null.shape)
        back = nti.sample(model.steps, pivot[0], cond, every, schedule, w)[-1]
        yield bench.figure(
            "guidance", "reconstruction", "DDIM", w, bench.reconstructions(back), "dB"
        )
        for name, unit, values in gaussianity(pivot[0]):
            yield bench.figure("guidance", name, "DDIM", w, values, unit)
    for name, unit, values in gaussianity(
        torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    ):
        yield bench.figure("guidance", name, "N(0, I)", 0, values, unit)


def gaussianity(latent: Tensor) -> Iterator[tuple[str, str, list[float]]]:
    """Yield what tells whether each z_T of (B, 4, h, w) is like N(0, I), by name and unit.

    The paper has the log-density alone, which is highest for a latent of zeros.
    """
    flat = latent.flatten(1).double()
    count = flat.shape[1]
    norm = flat.square().sum(dim=1)
    yield "log-density", "nats", (-(norm + count * math.log(2 * math.pi)) / 2).tolist()
    yield "squared norm / d", "", (norm / count).tolist()
    centred = flat - flat.mean(dim=1, keepdim=True)
    moment = centred.square().mean(dim=1)
    yield "kurtosis", "", ((centred**4).mean(dim=1) / moment**2).tolist()
    across = (latent[..., 1:] * latent[..., :-1]).flatten(1).double().mean(dim=1)
    yield "autocorrelation", "", (across / (norm / count)).tolist()


SECTIONS = {
    "background": background,
    "iterations": iterations,
    "strength": strength,
    "guidance": guidance,
    "captions": captions,
}


def write(path: Path, rows: Iterator[Figure], mode: str = "w") -> None:
    """Write rows as they are found, and print them; mode `a` goes on with the rows of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open(mode, newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Figure)])
        if file.tell() == 0:
            writer.writeheader()
        for row in rows:
            writer.writerow(asdict(row))
            file.flush()
            print(f"{row.case} {row.x:g}: {row.name} {row.value:g} {row.unit}", flush=True)


def main() -> None:
    """Run the sections that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="+", choices=SECTIONS)
    parser.add_argument("--scenes", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    model = nti.load_model()
    bench = Bench(model, held_out(TEST, options.scenes), options.steps, gflop_of(model))
    for section in options.sections:
        write(options.out / f"ablation-{section}.csv", SECTIONS[section](bench))


if __name__ == "__main__":
    main()
