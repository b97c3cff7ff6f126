"""What a row says of where it was measured."""

import platform
import subprocess
from pathlib import Path

import torch

__all__ = ["commit", "commit_of", "device", "is_dirty"]


def device() -> str:
    """Return the GPU's or the processor's name, with family and model, as one name stands for
    several.
    """
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    facts = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    name = facts.get("model name", platform.machine())
    if "cpu family" in facts and "model" in facts:
        name += f" (family {facts['cpu family']}, model {facts['model']})"
    return f"{name}, {torch.get_num_threads()} cores"


def commit() -> str:
    """Return the short name of the commit that runs."""
    return _git("rev-parse", "--short", "HEAD")


def commit_of(folder: str) -> str:
    """Return the commit that has last changed a folder of the repository."""
    return _git("log", "-1", "--format=%h", "--", f":/{folder}")


def is_dirty() -> bool:
    """Whether tracked files have changed since, other than results that a bench goes on with."""
    where = (":/", ":(top,exclude)benchmarks/results")
    return bool(_git("status", "--porcelain", "--untracked-files=no", "--", *where))


def _git(*arguments: str) -> str:
    here = Path(__file__).parent
    done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True)
    return done.stdout.strip()
