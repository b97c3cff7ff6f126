"""Where an inner iteration's time goes: each op's milliseconds and calls, by PyTorch's profiler.

    python benchmarks/profile_step.py --side 512 --out benchmarks/results/profile.csv

Of a GPU it is the time on the GPU, launched op by op: what a CUDA graph replays, without the gaps.
"""

import argparse
import csv
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from cases import QUICK, begun, moment_after, random_model, step_inputs
from nti.config import SD_V1
from rows import make_row

CALLS = 3


def main() -> None:
    """Write a row an op, those that take longest first."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a narrow model")
    parser.add_argument("--side", type=int, default=512, help="pixels")
    parser.add_argument("--most", type=int, default=45, help="how many rows")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    dtype = torch.float16 if on_gpu else torch.float32
    config = QUICK if options.quick else SD_V1
    model = random_model(config, dtype, device)
    x = begun(model.steps, step_inputs(config, options.side, device, model.steps.noise))
    moment_after(model.steps, x)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as seen:
        for _ in range(CALLS):
            moment_after(model.steps, x)
        if on_gpu:
            torch.cuda.synchronize()
    time = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = sorted(seen.key_averages(), key=lambda event: -getattr(event, time))
    where = make_row("profile", "", f"{config.unet.channels} channels, {options.side} px")
    with options.out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["op", "ms", "calls", "case", "dtype", "device", "torch", "triton", "commit"]
        )
        for event in events[: options.most]:
            milliseconds = getattr(event, time) / 1e3 / CALLS
            writer.writerow(
                [event.key, f"{milliseconds:.4f}", event.count // CALLS, where.case,
                 str(dtype).removeprefix("torch."), where.device, where.torch, where.triton,
                 where.commit]
            )  # fmt: skip


if __name__ == "__main__":
    main()
