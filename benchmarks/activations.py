"""Count what an inner iteration keeps for its backward pass, weights aside, on no device at all.

    python benchmarks/activations.py

Stable Diffusion v1's UNet in float16 by the Triton kernels, on PyTorch's meta device: `nti` as it
ships, `nti, low memory` with its blocks computed again in the backward pass. The column `peak_mib`
holds the sum.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from nti.config import SD_V1
from nti.networks.unet import UNet
from rows import Row, make_row, write_rows


def main() -> None:
    """Count, print and write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    rows = [row for side in (512, 768) for row in kept(side)]
    for row in rows:
        print(f"{row.provider:<16} {row.case:<24} {row.peak_mib:>8.1f} MiB")
    write_rows(rows, options.out / "activations.csv")


def kept(side: int) -> list[Row]:
    """Return a row for each way to keep activations, of an image of `side` pixels."""
    rows = []
    for name, recompute in (("nti", False), ("nti, low memory", True)):
        mib = _kept_mib(side, recompute)
        case = f"320 channels, {side} px"
        rows.append(make_row("activations", name, case, dtype=torch.float16, peak_mib=mib))
    return rows


def _kept_mib(side: int, recompute: bool) -> float:
    with torch.device("meta"):
        unet = UNet(SD_V1.unet, backend="triton", recompute=recompute).half()
        unet.requires_grad_(False).to(memory_format=torch.channels_last)
        latent = torch.empty(1, 4, side // 8, side // 8).half()
        context = torch.empty(1, 77, SD_V1.unet.context_dim).half().requires_grad_()
        timestep = torch.empty(1, dtype=torch.int64)
    weights = {parameter.untyped_storage()._cdata for parameter in unet.parameters()}
    held: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage()._cdata] = tensor  # alive, so that its place stays its own
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        unet(latent, timestep, context)
    sizes = (x.untyped_storage().nbytes() for key, x in held.items() if key not in weights)
    return sum(sizes) / 2**20


if __name__ == "__main__":
    main()
