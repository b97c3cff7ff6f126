"""Interleaved timing, on a busy machine if that is asked for, and peak memory of a process of its
own.
"""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

__all__ = [
    "busy_core",
    "child_peak_mib",
    "interleaved",
    "own_peak_mib",
    "printed_by",
    "resident_peak_mib",
]


def interleaved(
    providers: Mapping[str, Callable[[], object]], repeats: int, *, warmup: int = 1
) -> dict[str, list[float]]:
    """Call the providers in turns; milliseconds of each call but the first `warmup` ones.

    Turns make a machine that slows down slow for all; the order changes with every turn.
    """
    times: dict[str, list[float]] = {name: [] for name in providers}
    names = list(providers)
    for turn in range(-warmup, repeats):
        for name in names if turn % 2 else reversed(names):
            _synchronize()
            started = time.perf_counter()
            providers[name]()
            _synchronize()
            if turn >= 0:
                times[name].append(1e3 * (time.perf_counter() - started))
    return times


@contextlib.contextmanager
def busy_core(asked: bool = True) -> Iterator[None]:
    """Keep one core busy meanwhile, by a process that computes for ever."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if asked else None
    try:
        yield
    finally:
        if other is not None:
            other.kill()
            other.wait()


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def child_peak_mib(arguments: Sequence[str], program: str = "peak.py") -> tuple[float, float]:
    """Run a program; return the two MiB that it prints last: before its work, and the peak."""
    base, peak = printed_by(program, arguments, 2)
    return base, peak


def printed_by(program: str, arguments: Sequence[str], count: int) -> list[float]:
    """Run a program of this folder; return the numbers that it prints last."""
    path = str(Path(__file__).with_name(program))
    done = subprocess.run(
        [sys.executable, path, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{program} {arguments}: {done.stderr[-2000:]}")
    return [float(number) for number in done.stdout.split()[-count:]]


def own_peak_mib() -> float:
    """Peak memory of this process so far: of the GPU where there is one, else resident.

    Of a GPU what PyTorch reserved, as a CUDA graph's memory is used but not allocated.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 2**20
    return resident_peak_mib()


def resident_peak_mib() -> float:
    """Peak of this process's resident memory so far."""
    # Not getrusage: its maximum is inherited from the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    (high,) = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return int(high) / 1024
