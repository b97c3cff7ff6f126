"""How many images a data set's run makes in a minute, and what it costs beside the work itself.

    python benchmarks/datasets.py single batches cluster growth --out rows.csv

All on rendered scenes, with the embedded model and one thread for each process.

`single`: an item by `nti run`, whose start is left out; by single commands (`nti invert`, `nti
edit`) as a shell script has them, start included; and by sequential code as benchmarks of editing
have it, model loaded before: the published loop on diffusers' UNet, its weights trainable, and the
published batch with every attention map in memory. They take turns.

`batches`: images at once. `cluster`: Ray with one worker
and with two. `growth`: 10, 100 and 1,000 items whose inversion takes next to nothing, so that all
that is beside the work shows.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).with_name("shapes")))

from manifest import NAME, write_manifest
from nti import StableDiffusion, load_image, load_model
from nti.datasets import run as datasets_run
from nti.datasets.item import Item
from nti.datasets.manifest import read_manifest
from nti.datasets.run import Here, run_manifest
from nti.datasets.work import make
from nti.editing.alignment import align
from nti.inversion.null_text import published_learning_rate, published_threshold
from nti.sampling.schedule import ddim_inverse_step
from p2p import default_windows
from peers import PublishedBatch, diffusers_unet, noise
from rows import Row, make_row, write_rows
from timing import own_peak_mib

STEPS, INNER_STEPS = 20, 10
SECTIONS = ("single", "batches", "cluster", "growth")


def main() -> None:
    """Measure the sections that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="+", choices=SECTIONS)
    parser.add_argument("--items", type=int, default=8, help="of all sections but `growth`")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    for section in options.sections:
        with TemporaryDirectory() as folder:
            for row in globals()[f"_{section}"](options.items, Path(folder)):
                quality = f"{row.quality:g} {row.unit}"
                print(f"{row.provider:<32} {row.case:<34} {row.p50_ms:>9.1f} ms {quality}")
                write_rows([row], options.out)


def _row(provider: str, case: str, seconds: float, items: int, **more: float | str) -> Row:
    per_minute = {"quality": 60 * items / seconds, "unit": "items per minute"}
    return make_row(
        "datasets", provider, case, milliseconds=[1e3 * seconds / items], **{**per_minute, **more}
    )


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _command(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "nti", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{arguments}: {done.stderr[-2000:]}")


def _single(items: int, folder: Path) -> Iterator[Row]:
    """Let the providers make each scene in turns."""
    whole = read_manifest(write_manifest(folder, items))
    model = load_model(device="cpu")
    here, sequential = Here(model), Sequential(model)
    times: dict[str, list[float]] = {}
    for number, item in enumerate(whole.items):
        one = replace(whole, items=(item,))
        calls = {
            "nti run": partial(
                run_manifest,
                one,
                folder / f"out-{number}",
                here,
                settings={"steps": STEPS},
                batch=1,
            ),
            "nti invert, nti edit": partial(_commands, item, folder),
            "sequential, as published": partial(
                sequential.item, Image.open(item.image), str(item.prompt), item.edits[0].prompt
            ),
        }
        for name in calls if number % 2 else reversed(calls):
            times.setdefault(name, []).append(_timed(calls[name]))
    case = f"{items} scenes, {STEPS} steps, an edit each"
    for name, seconds in times.items():
        yield make_row(
            "datasets", name, case, milliseconds=[1e3 * s for s in seconds],
            quality=60 * items / sum(seconds), unit="items per minute",
        )  # fmt: skip


def _commands(item: Item, folder: Path) -> None:
    """Make an item as a shell script does, by a process for each step."""
    inversion = str(folder / f"{item.id}.nti.safetensors")
    _command(
        "invert", item.image, "--prompt", str(item.prompt), "--steps", str(STEPS), "-o", inversion
    )
    edit = str(folder / f"{item.id}-edit.png")
    _command("edit", inversion, "--prompt", item.edits[0].prompt, "-o", edit)


class Sequential:
    """Null-text inversion and Prompt-to-Prompt as they are published, on diffusers' UNet."""

    def __init__(self, model: StableDiffusion) -> None:
        self.model, self.unet = model, diffusers_unet(model.unet)
        self.batch = PublishedBatch(self.unet, 64)
        self.schedule, self.w = model.schedule(STEPS), model.config.guidance_scale

    def item(self, image: Image.Image, caption: str, edited: str) -> Tensor:
        """Return the edit's picture (1, 3, H, W)."""
        model = self.model
        z_0 = model.encode_image(load_image(image, model.config.image_size))
        null, cond = model.encode_text(["", caption]).split(1)
        pivot = [z_0]
        with torch.no_grad():
            for i in reversed(range(STEPS)):
                eps = noise(self.unet, pivot[-1], self.schedule.timesteps[i], cond)
                pivot.append(ddim_inverse_step(pivot[-1], eps, self.schedule.coefficients(i)))
        uncond = self.optimized(pivot[::-1], null, cond)
        return model.decode_latent(self.edited(pivot[-1], uncond, caption, edited)[1:])

    def optimized(self, pivot: list[Tensor], null: Tensor, cond: Tensor) -> list[Tensor]:
        """Return the null embedding of each timestep; the UNet's weights get gradients, too."""
        self.unet.requires_grad_(True)
        latent, found = pivot[0], []
        for i, timestep in enumerate(self.schedule.timesteps):
            step = self.schedule.coefficients(i).to(latent)
            null = null.clone().requires_grad_()
            adam = torch.optim.Adam([null], lr=published_learning_rate(i, STEPS))
            with torch.no_grad():
                eps_cond = noise(self.unet, latent, timestep, cond)
            for _ in range(INNER_STEPS):
                eps = noise(self.unet, latent, timestep, null)
                eps = eps + self.w * (eps_cond - eps)
                loss = F.mse_loss(step.latent * latent + step.eps * eps, pivot[i + 1])
                adam.zero_grad()
                loss.backward()
                adam.step()
                if loss.item() < published_threshold(i, STEPS):
                    break
            null = null.detach()
            with torch.no_grad():
                eps = noise(self.unet, latent, timestep, null)
                latent = step.latent * latent + step.eps * (eps + self.w * (eps_cond - eps))
            found.append(null)
        self.unet.requires_grad_(False)
        return found

    def edited(self, z_T: Tensor, uncond: list[Tensor], caption: str, edited: str) -> Tensor:
        """Return the last latents of source and edit."""
        encode = self.model.tokenizer.encode
        alignment = align("auto", encode(caption), encode(edited))
        cond, latents = self.model.encode_text([caption, edited]), z_T.repeat(2, 1, 1, 1)
        cross, inject = default_windows(STEPS)
        with self.batch.installed():
            for i, timestep in enumerate(self.schedule.timesteps):
                self.batch.mix = alignment.mapping.float() if i < cross else None
                self.batch.inject = i < inject
                context = torch.cat([uncond[i].expand(2, -1, -1), cond])
                step = self.schedule.coefficients(i)
                latents = self.batch.step(latents, timestep, context, step, self.w)
        return latents


def _batches(items: int, folder: Path) -> Iterator[Row]:
    manifest, model = read_manifest(write_manifest(folder, items)), load_model(device="cpu")
    for size in (1, 2, 4):
        run = partial(
            run_manifest, manifest, folder / str(size), Here(model), settings={"steps": STEPS},
            batch=size,
        )  # fmt: skip
        yield _row("nti run", f"{items} scenes, batches of {size}", _timed(run), items)


def _cluster(items: int, folder: Path) -> Iterator[Row]:
    manifest = write_manifest(folder, items)
    for workers in (1, 2):
        run = partial(
            _command, "run", str(manifest), "-o", str(folder / str(workers)), "--batch", "1",
            "--steps", str(STEPS), "--ray", "local", "--workers", str(workers),
        )  # fmt: skip
        case = f"{items} scenes, {workers} workers, start included"
        yield _row("nti run --ray", case, _timed(run), items)


def _growth(_: int, folder: Path) -> Iterator[Row]:
    """Time the work, and all that is beside it, of runs that grow."""
    write_manifest(folder, 1000)
    model = load_model(device="cpu")
    whole = read_manifest(folder / NAME)
    settings = {"method": "autoencoder", "steps": 1}
    for count in (10, 100, 1000):
        items = tuple(replace(item, edits=()) for item in whole.items[:count])
        worked = [0.0]

        def made(*arguments: object, **named: object) -> object:
            started = time.perf_counter()
            try:
                return make(*arguments, **named)  # type: ignore[arg-type]
            finally:
                worked[0] += time.perf_counter() - started  # noqa: B023

        datasets_run.make = made  # type: ignore[assignment]
        seconds = _timed(
            partial(
                run_manifest, replace(whole, items=items), folder / str(count), Here(model),
                settings=settings, batch=1,
            )
        )  # fmt: skip
        datasets_run.make = make
        beside = 1e3 * (seconds - worked[0]) / count
        case = f"{count} items"
        yield _row("an item", case, seconds, count, peak_mib=own_peak_mib())
        yield _row(
            "of it, beside the work", case, beside * count / 1e3, count,
            quality=100 * (seconds - worked[0]) / seconds, unit="% of an item without optimization",
        )  # fmt: skip
        started = time.perf_counter()
        run_manifest(
            replace(whole, items=items),
            folder / str(count),
            Here(model),
            settings=settings,
            batch=1,
        )
        again = time.perf_counter() - started
        yield _row("an item that is done, again", case, again, count)


if __name__ == "__main__":
    main()
