"""All figures of a machine: rows of CSV files, from which `report.py` makes tables and a plot.

    python benchmarks/run.py                     what runs here, at Stable Diffusion v1's size
    python benchmarks/run.py step --side 256     one section, one size
    python benchmarks/run.py --quick             the same at a fifth of the width, in minutes

On the GPU where there is one; `CUDA_VISIBLE_DEVICES=` hides it. Peers run in the same process on
the same weights, in turns; memory is measured in a process a provider. A section in which a result
is wrong writes no row.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from nti.kernels.backend import has_onednn

from cases import QUICK
from community import Pipeline, community, pipeline_class
from inversions import inversions
from layers import layers
from load import load
from nti.config import SD_V1, ModelConfig
from p2p import edits
from roofline import products
from rows import Row, write_rows
from step import compiled, step
from timing import busy_core

SECTIONS = (
    "roofline", "layers", "step", "edit", "inversion", "load", "community", "kernels", "compile"
)  # fmt: skip
"""Not all run everywhere by default: `layers` is of the CPU and `kernels` of CUDA, `community`
needs its file, and `compile` takes minutes on a CPU, so there it has to be named."""


def main() -> None:
    """Run the sections asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "sections", nargs="*", choices=[*SECTIONS, []], help="default: all that run here"
    )
    parser.add_argument("--quick", action="store_true", help="a narrow model, few repeats")
    parser.add_argument("--side", type=int, action="append", help="pixels (default: 256 and 512)")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--dtype", default=None, choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--busy", action="store_true", help="beside a process that keeps a core")
    parser.add_argument("--community", type=Path, help="the file of diffusers' NullTextPipeline")
    parser.add_argument(
        "--out", type=Path,
        help="where rows go (default: benchmarks/results; with --quick a folder for temporary"
        " files, which is named)",
    )  # fmt: skip
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # float32 is what half precision is compared with: in full, which PyTorch's convolutions on CUDA
    # are not by default.
    torch.backends.cudnn.allow_tf32 = False
    dtype = getattr(torch, options.dtype or ("float32" if device.type == "cpu" else "float16"))
    config = QUICK if options.quick else SD_V1
    sides = options.side or ([128] if options.quick else [256, 512])
    repeats = options.repeats or 3
    out = options.out or Path("benchmarks/results")
    if options.quick and options.out is None:
        out = Path(tempfile.mkdtemp(prefix="nti-quick-"))
        print(f"rows go to {out}")
    named = options.sections
    pipeline = None
    if options.community:
        try:
            pipeline = pipeline_class(options.community)
        except ValueError as error:
            parser.error(str(error))
    elif "community" in named:
        parser.error("community: needs --community FILE")
    if pipeline and named and "community" not in named:
        parser.error(f"--community: only for section community, got {' '.join(named)}")
    if "kernels" in named and device.type != "cuda":
        parser.error("kernels: only on CUDA")
    onednn = has_onednn(device, torch.float32)
    if "layers" in named and not onednn:
        parser.error("layers: only on a CPU (CUDA_VISIBLE_DEVICES= hides a GPU) and with oneDNN")
    left_out = {"compile", "kernels"} if device.type == "cpu" else set()
    left_out |= set() if onednn else {"layers"}
    left_out |= set() if pipeline else {"community"}
    for section in named or [each for each in SECTIONS if each not in left_out]:
        started = time.monotonic()
        name = f"quick-{section}" if options.quick else section
        parts = _parts(section, config, sides, repeats, dtype, device, pipeline)
        for rows in _labelled(parts, busy=options.busy):
            for row in rows:
                print(
                    f"{row.section:<10} {row.provider:<16} {row.case:<34} {row.dtype:<8}"
                    f" {row.p50_ms:>10.3f} ms {row.peak_mib:>8.0f} MiB  {row.quality:g} {row.unit}"
                )
            write_rows(rows, out / f"{name}.csv")
        print(f"{section}: {time.monotonic() - started:.0f} s", flush=True)


def _labelled(parts: Iterator[list[Row]], *, busy: bool) -> Iterator[list[Row]]:
    """Measure, beside a busy core if asked, and say in each case what is not as usual."""
    spins = os.environ.get("GOMP_SPINCOUNT")
    unusual = [] if spins is None else [f"GOMP_SPINCOUNT={spins}"]
    unusual += ["busy"] if busy else []
    with busy_core(busy):
        for rows in parts:
            yield [replace(row, case=", ".join([row.case, *unusual])) for row in rows]


def _parts(
    section: str,
    config: ModelConfig,
    sides: Sequence[int],
    repeats: int,
    dtype: torch.dtype,
    device: torch.device,
    pipeline: Pipeline | None,
) -> Iterator[list[Row]]:
    """Measure a section, part by part, so that what ran is written even if the rest does not."""
    by_side = {"step": step, "edit": edits, "compile": compiled}
    steps = 50 if config is SD_V1 else 4
    if section in by_side:
        for side in sides:
            yield by_side[section](config, side, repeats, dtype, device)
    elif section == "layers":
        yield layers(config, repeats)
    elif section == "roofline":
        yield products(repeats, dtype, device)
    elif section == "inversion":
        yield from inversions(repeats, steps, dtype, device)
    elif section == "community" and pipeline:
        yield from community(pipeline, config, sides, repeats, steps, device)
    elif section == "load":
        yield from load(config, repeats, device)
    else:
        from triton_ops import kernels

        yield from kernels(repeats)


if __name__ == "__main__":
    main()
