"""The whole job from file to file: imports, loading, encoding, inversion and saving, each in a
process of its own, in turns.

    python benchmarks/whole_job.py --community FILE           the embedded model, T = 50
    python benchmarks/whole_job.py --community FILE --full    SD v1's size, 256 px, T = 10
    python benchmarks/whole_job.py --community FILE --busy    beside a process that keeps a core
    python benchmarks/whole_job.py report                     the table of docs/performance.md

`--community` names diffusers' NullTextPipeline (see `community`). At SD v1's size the weights are
random, and no timestep of null-text stops early. The pipeline's program loads by `nti.load_model`,
and encodes by its networks. A job of one timestep with one iteration tells how much is not
iterations.
"""

import argparse
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from subprocess import run
from tempfile import TemporaryDirectory

import torch
from PIL import Image

from community import PROVIDER, THRESHOLD, Community, pipeline_class
from load import write_checkpoint
from nti import load_model
from nti.config import SD_V1
from nti.demo import sample_image
from rows import Row, make_row, read_rows, write_rows
from timing import busy_core

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
PLACE = re.compile(r"(<!-- whole job -->\n).*?(<!-- end whole job -->)", re.DOTALL)
PROMPT = "a red cross on wood"
SHORTEST = "nti, one timestep of one iteration"
SIDE = 256
"""Pixels, at SD v1's size."""


def commands(options: argparse.Namespace, work: Path, steps: int) -> dict[str, list[str]]:
    """Return each provider's command."""
    image, never = work / "image.png", ["--early-stop", "0"] if options.full else []
    ours = [
        sys.executable, "-m", "nti", "invert", str(image), "--prompt", PROMPT, "--guidance", "7.5",
        "--steps", str(steps), "-q", "--restart",
    ]  # fmt: skip
    checkpoint = work / "model.safetensors"
    if options.full:
        ours += ["--checkpoint", str(checkpoint)]
    found = {
        "nti": [*ours, *never, "-o", str(work / "a.nti.safetensors")],
        "nti, null-text-fast": [
            *ours, "--method", "null-text-fast", "-o", str(work / "b.nti.safetensors")
        ],
    }  # fmt: skip
    if options.community:
        found[PROVIDER] = [
            sys.executable, __file__, "theirs", "--community", str(options.community), "--image",
            str(image), "--steps", str(steps), "--output", str(work / "c.pt"),
            *(["--checkpoint", str(checkpoint)] if options.full else []),
        ]  # fmt: skip
    first = [*ours, "--inner-steps", "1", "-o", str(work / "d.nti.safetensors")]
    first[first.index("--steps") + 1] = "1"
    return found | {SHORTEST: first}


def theirs(options: argparse.Namespace) -> None:
    """Invert as a program around the pipeline does: its UNet on the weights of a file."""
    model = load_model(options.checkpoint, dtype=torch.float32)
    pipeline = Community(pipeline_class(options.community), model)
    threshold = -1.0 if options.checkpoint else THRESHOLD
    torch.save(pipeline.invert(options.image, PROMPT, options.steps, threshold), options.output)


def measure(options: argparse.Namespace) -> list[Row]:
    """Time each provider as often as is asked for."""
    steps = 10 if options.full else 50
    with TemporaryDirectory(dir=options.work) as place:
        work = Path(place)
        with Image.open(sample_image("red-cross")) as image:
            size = (SIDE, SIDE) if options.full else image.size
            image.convert("RGB").resize(size).save(work / "image.png")
        if options.full:
            write_checkpoint(
                replace(SD_V1, image_size=SIDE), torch.float32, work / "model.safetensors"
            )
        asked = commands(options, work, steps)
        times: dict[str, list[float]] = {name: [] for name in asked}
        with busy_core(options.busy):
            for turn in range(options.repeats):
                for name in asked if turn % 2 else reversed(asked):
                    started = time.perf_counter()
                    done = run(asked[name], capture_output=True, text=True)
                    if done.returncode:
                        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
                    times[name].append(1e3 * (time.perf_counter() - started))
                    print(f"{name}: {times[name][-1] / 1e3:.1f} s", flush=True)
    where = f"SD v1's size, {SIDE} px" if options.full else "embedded model"
    return [
        make_row(
            "whole_job", name,
            (where if name == SHORTEST else f"{where}, T = {steps}")
            + (", busy" if options.busy else ""),
            milliseconds=each,
        )
        for name, each in times.items()
    ]  # fmt: skip


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of the page's table."""
    yield "|  | median s | times as fast as NullTextPipeline |"
    yield "|---|---:|---:|"
    for row in rows:
        whole = {r.provider: r.p50_ms for r in rows if (r.case, r.device) == (row.case, row.device)}
        ratio = f"{whole[PROVIDER] / row.p50_ms:.2f}" if PROVIDER in whole else ""
        yield f"| {row.provider}, {row.case} | {row.p50_ms / 1e3:.1f} | {ratio} |"
    yield ""
    yield from sorted({f"{row.device}, torch {row.torch}, commit {row.commit}." for row in rows})


def main() -> None:
    """Measure, write the table, or be the other side."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", nargs="?", choices=["measure", "report", "theirs"], default="measure"
    )
    parser.add_argument("--community", type=Path, help="the file of diffusers' NullTextPipeline")
    parser.add_argument("--full", action="store_true", help="SD v1's size, random weights")
    parser.add_argument("--busy", action="store_true", help="beside a process that keeps a core")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, help="where the checkpoint lies meanwhile")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    for name in ("image", "checkpoint", "output"):
        parser.add_argument(f"--{name}", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    path = options.out / "whole_job.csv"
    if options.what == "theirs":
        theirs(options)
    elif options.what == "report":
        text = "\n".join([*table(read_rows(path)), ""])
        PAGE.write_text(PLACE.sub(lambda m: m[1] + text + m[2], PAGE.read_text("utf-8")), "utf-8")
    else:
        write_rows(measure(options), path)


if __name__ == "__main__":
    main()
