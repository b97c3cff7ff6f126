"""Whole programs from file to file: those of examples/cpp, and Python. See `embed`."""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image

import nti
from cases import random_model
from load import write_checkpoint
from nti.config import SD_V1
from nti.demo import sample_image
from nti.export.export import export
from nti.model import StableDiffusion
from rows import Row, make_row

__all__ = ["embed_model", "programs"]


def embed_model(full: bool) -> StableDiffusion:
    """Return the embedded model, or random weights of Stable Diffusion v1's size."""
    if not full:
        return nti.load_model()
    return random_model(SD_V1, torch.float32, torch.device("cpu"), whole=True)


MEASURED = """
import resource, subprocess, sys, time
started = time.perf_counter()
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
seconds = time.perf_counter() - started
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
print(done.returncode, seconds, peak)
sys.stderr.write(done.stderr)
"""
"""Run a program from a small process: its peak would be at least that of a large one."""


def measured(command: Sequence[object], code: int = 0, says: str = "") -> tuple[float, float]:
    """Return the seconds and peak MiB of a command, which has to end with a code and a message."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", MEASURED, *map(str, command)], capture_output=True, text=True,
        check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    found, seconds, peak = done.stdout.split()
    if int(found) != code or says not in done.stderr:
        raise RuntimeError(f"{command}: ended with {found}: {done.stderr[-2000:]}")
    return float(seconds), float(peak)


def programs(options: argparse.Namespace) -> Iterator[list[Row]]:
    """Yield rows of whole programs with one thread: an inversion, an edit, and libtorch's start."""
    steps = 2 if options.full else 50
    with tempfile.TemporaryDirectory(dir=options.work) as place:
        work = Path(place)
        model = embed_model(options.full)
        side = options.side or model.config.image_size
        formats = {"nti-torch": "aoti", "nti-onnx": "onnx"}
        found = {name: each for name, each in formats.items() if each in options.format}
        export(model, work / "export", size=side, steps=steps, formats=list(found.values()))
        source, target = "a red cross on wood", "a blue star on wood"
        with Image.open(sample_image("red-cross")) as image:
            image.convert("RGB").resize((side, side)).save(work / "image.png")
        given = ["--size", side]
        if options.full:
            write_checkpoint(SD_V1, torch.float32, work / "model.safetensors")
            given += ["--checkpoint", work / "model.safetensors"]
        del model
        nti_command = [sys.executable, "-m", "nti"]
        prompts = ["--prompt", target, "--blend", "cross:star"]
        plan, kept = work / "plan.safetensors", work / "kept.nti.safetensors"
        planning = [*nti_command, "plan", "--source", source, "--steps", steps, *prompts]
        subprocess.run([*map(str, planning), "-o", plan], check=True)
        inversion = [*nti_command, "invert", work / "image.png", "--prompt", source, *given]
        inversion += ["--steps", steps, "--restart", "-o"]
        edit = [*nti_command, "edit", kept, *prompts, *given[2:], "-o"]
        measured([*inversion, kept])
        works: dict[str, dict[str, list[object]]] = {"inversion": {}, "edit": {}}
        for name in found:
            start = options.build / name
            at, image = work / "export", work / "image.png"
            works["inversion"][name] = [
                start,
                "invert",
                at,
                plan,
                image,
                work / "x.nti.safetensors",
            ]
            works["edit"][name] = [start, "edit", at, kept, plan, work / f"{name}.png"]
        works["inversion"]["python"] = [*inversion, work / "python.nti.safetensors"]
        works["edit"]["python"] = [*edit, work / "python.png"]
        where = f"Stable Diffusion v1, {side} px, " if options.full else ""
        for what, commands in works.items():
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
            for _ in range(options.repeats):
                for name, command in commands.items():
                    times[name].append(measured(command))
            case = f"{what} from file to file, {where}T = {steps}, 1 thread"
            yield [
                _whole(name, case, each, _grey_levels(work, name), "grey levels from Python's")
                if what == "edit"
                else _whole(name, case, each)
                for name, each in times.items()
            ]
        if "nti-torch" in found:  # the other loads a graph when it first calls it
            case = f"start, {where}until all functions are loaded"
            start = [options.build / "nti-torch", "edit", work / "export", "none", plan, "x.png"]
            each = [
                measured(start, code=2, says="none: cannot be read") for _ in range(options.repeats)
            ]
            yield [_whole("nti-torch", case, each)]


def _whole(
    name: str,
    case: str,
    found: Sequence[tuple[float, float]],
    difference: float = 0.0,
    unit: str = "",
) -> Row:
    return make_row(
        "embed", name, case, milliseconds=[1e3 * seconds for seconds, _ in found],
        peak_mib=max(peak for _, peak in found), quality=difference,
        unit=unit,
    )  # fmt: skip


def _grey_levels(work: Path, name: str) -> float:
    """Return the largest difference of a program's edit from Python's."""
    pixels = []
    for each in (name, "python"):
        with Image.open(work / f"{each}.png") as image:
            pixels.append(torch.tensor(list(image.convert("RGB").getdata())))
    return float((pixels[0] - pixels[1]).abs().max())
