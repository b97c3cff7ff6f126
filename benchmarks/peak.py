"""One provider alone in a process: does its work twice and prints MiB: what the process had when
all that the provider needs was imported (for `load`: PyTorch alone), and its peak.
"""

import argparse
from pathlib import Path

import torch

from timing import own_peak_mib, resident_peak_mib

BASE = resident_peak_mib()

from cases import QUICK, begun, moment_after, random_model, random_unet, step_inputs  # noqa: E402
from nti import load_model  # noqa: E402
from nti.config import SD_V1, ModelConfig  # noqa: E402
from nti.execution.cuda_graph import captured_steps  # noqa: E402


def main() -> None:
    """Run the provider that is named, or `load`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("provider")
    parser.add_argument("--side", type=int)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--file", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, options.dtype)
    if options.provider == "load":
        load_model(options.file, device=device, dtype=dtype)
        print(BASE, resident_peak_mib())
        return
    config = QUICK if options.quick else SD_V1
    run = _ours if options.provider.startswith("nti") else _theirs
    print(run(options.provider, config, options.side, dtype, device), own_peak_mib())


def _ours(
    provider: str, config: ModelConfig, side: int, dtype: torch.dtype, device: torch.device
) -> float:
    imported = own_peak_mib()
    model = random_model(config, dtype, device, recompute="low" in provider)
    x = step_inputs(config, side, device, model.steps.noise)
    steps = captured_steps(model.steps) if "graph" in provider else model.steps
    x = begun(steps, x)
    for _ in range(2):
        moment_after(steps, x)
    return imported


def _theirs(
    provider: str, config: ModelConfig, side: int, dtype: torch.dtype, device: torch.device
) -> float:
    from peers import PublishedLoop, diffusers_unet, noise

    imported = own_peak_mib()
    unet = diffusers_unet(random_unet(config, dtype, device))
    x = step_inputs(config, side, device, lambda *given: noise(unet, *given))
    loop = PublishedLoop(unet, frozen=provider == "frozen")
    for _ in range(2):
        loop.iterate(x)
    return imported


if __name__ == "__main__":
    main()
