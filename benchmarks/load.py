"""Section `load`: how long a checkpoint takes from a warm page cache, and the peak of resident
memory, in a process that does nothing else. What `import torch` alone takes is not counted in the
share, and is in the peak.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from cases import random_model
from nti import load_model
from nti.config import ModelConfig
from nti.model import CONFIG_KEY, layouts
from rows import Row, make_row
from timing import child_peak_mib

__all__ = ["load", "write_checkpoint"]

DTYPES = {"float32": torch.float32, "float16": torch.float16}


def load(config: ModelConfig, repeats: int, device: torch.device) -> Iterator[list[Row]]:
    """Write a checkpoint of random weights in each dtype and load it as float32 and float16."""
    with tempfile.TemporaryDirectory() as folder:
        for stored in DTYPES:
            path, weights = write_checkpoint(config, DTYPES[stored], Path(folder) / "x.safetensors")
            gigabytes = path.stat().st_size / 1e9
            for wanted, dtype in DTYPES.items():
                times = []
                for _ in range(repeats):
                    started = time.perf_counter()
                    load_model(path, device=device, dtype=dtype)
                    times.append(1e3 * (time.perf_counter() - started))
                base, memory = child_peak_mib(["load", "--file", str(path), "--dtype", wanted])
                need = weights * dtype.itemsize / 2**20
                yield [
                    make_row(
                        "load", "nti", f"{gigabytes:.1f} GB of {stored}", dtype=dtype,
                        milliseconds=times, peak_mib=memory, quality=(memory - base - 300) / need,
                        unit="of the weights, beyond PyTorch and 300 MiB",
                    )
                ]  # fmt: skip
            path.unlink()


def write_checkpoint(config: ModelConfig, dtype: torch.dtype, path: Path) -> tuple[Path, int]:
    """Write a whole checkpoint; return it and the number of weights."""
    model = random_model(config, dtype, torch.device("cpu"), whole=True)
    tensors = {}
    for name, (original, *_) in layouts(config).items():
        state = {"unet": model.unet, "vae": model.vae, "text": model.text}[name].state_dict()
        for sources, target in original.rows:
            for source, part in zip(sources, state[target].chunk(len(sources)), strict=True):
                tensors[original.prefix + source] = part.contiguous()
    save_file(tensors, path, metadata={CONFIG_KEY: config.to_json()})
    return path, sum(tensor.numel() for tensor in tensors.values())
