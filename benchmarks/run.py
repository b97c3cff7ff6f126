"""All figures of a machine: rows of CSV files, from which `report.py` makes tables and a plot.

    python benchmarks/run.py                     every section at Stable Diffusion v1's size
    python benchmarks/run.py step --side 256     one section, one size
    python benchmarks/run.py --quick             every section at a fifth of the width, in minutes

Peers run in the same process on the same weights, in turns; memory is measured in a process a
provider. No row is written for a provider whose result is wrong.
"""

import argparse
import time
from pathlib import Path

import torch

from cases import QUICK
from inversions import inversions
from load import load
from load import peak as load_peak
from nti.config import SD_V1
from p2p import edits
from rows import Row, write_rows
from step import compiled, step
from step import peak as step_peak

SECTIONS = ("step", "edit", "inversion", "load", "kernels", "compile")
"""The last two only on CUDA: a CPU compiles for minutes, and interprets kernels."""


def main() -> None:
    """Run the sections asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="default: all")
    parser.add_argument("--quick", action="store_true", help="a narrow model, few repeats")
    parser.add_argument("--side", type=int, action="append", help="pixels (default: 256 and 512)")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--dtype", default=None, choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = torch.device(options.device)
    dtype = getattr(torch, options.dtype or ("float32" if device.type == "cpu" else "float16"))
    config = QUICK if options.quick else SD_V1
    sides = options.side or ([128] if options.quick else [256, 512])
    if options.peak == "load":
        print(load_peak(options.file, dtype, device))
        return
    if options.peak:
        print(step_peak(options.peak, config, sides[0], dtype, device))
        return
    repeats = options.repeats or 3
    for section in options.sections or SECTIONS:
        started = time.monotonic()
        rows: list[Row] = []
        if section == "step":
            for side in sides:
                rows += step(config, side, repeats, dtype, device)
        elif section == "edit":
            for side in sides:
                rows += edits(config, side, repeats, dtype, device)
        elif section == "inversion":
            rows = inversions(repeats, 4 if options.quick else 50, device)
        elif section == "load":
            rows = load(config, repeats, device)
        elif device.type != "cuda":
            print(f"{section}: only on CUDA")
        elif section == "compile":
            for side in sides:
                rows += compiled(config, side, repeats, dtype, device)
        else:
            from attention import kernels

            rows = kernels(repeats)
        for row in rows:
            print(
                f"{row.section:<10} {row.provider:<16} {row.case:<34} {row.dtype:<8}"
                f" {row.p50_ms:>10.1f} ms {row.peak_mib:>8.0f} MiB  {row.quality:g} {row.unit}"
            )
        if rows:
            name = f"quick-{section}" if options.quick else section
            write_rows(rows, options.out / f"{name}.csv")
        print(f"{section}: {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
