"""Count, on no device at all, what design decisions rest on.

    python benchmarks/counts.py

`kept`: what an inner iteration of Stable Diffusion v1's UNet keeps for its backward pass, weights
aside, in float16 by the Triton kernels: `nti` as it ships, `nti, low memory` with its blocks
computed again in the backward pass. The column `peak_mib` holds the sum.

`before the first text`: the share of an iteration's work that does not depend on the embedding, and
so is computed once a timestep (`nti.sampling.step.begin`).
"""

import argparse
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from nti.config import SD_V1
from nti.networks.unet import UNet
from roofline import counted, iteration_tflop
from rows import Row, make_row, write_rows


def main() -> None:
    """Count, print and write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    rows = [kept(side, recompute) for side in (512, 768) for recompute in (False, True)]
    rows += [before_the_first_text(side) for side in (256, 512, 768)]
    for row in rows:
        found = f"{row.quality:.1%} {row.unit}" if row.unit else f"{row.peak_mib:.1f} MiB"
        print(f"{row.provider:<24} {row.case:<28} {found}")
    write_rows(rows, options.out / "counts.csv")


def kept(side: int, recompute: bool) -> Row:
    """Return the activations of an image of `side` pixels."""
    with torch.device("meta"):
        unet = UNet(SD_V1.unet, backend="triton", recompute=recompute).half()
        unet.requires_grad_(False).to(memory_format=torch.channels_last)
        latent, timestep, context = (x.half() for x in _inputs(side))
    context.requires_grad_()
    weights = {parameter.untyped_storage()._cdata for parameter in unet.parameters()}
    held: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage()._cdata] = tensor  # alive, so that its place stays its own
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        unet(latent, timestep, context)
    sizes = (x.untyped_storage().nbytes() for key, x in held.items() if key not in weights)
    name = "nti, low memory" if recompute else "nti"
    case = f"kept, 320 channels, {side} px"
    return make_row("counts", name, case, dtype=torch.float16, peak_mib=sum(sizes) / 2**20)


def before_the_first_text(side: int) -> Row:
    """Return the share of the work that comes before it."""
    with torch.device("meta"):
        unet = UNet(SD_V1.unet).requires_grad_(False)
        latent, timestep, _ = _inputs(side)
        with counted() as counter:
            x = unet.down[0].res[0](unet.conv_in(latent), unet.time_embedding(timestep))
            first = unet.down[0].attention[0]
            tokens = rearrange(first.proj_in(first.norm(x)), "b c h w -> b (h w) c")
            first.self_attention(tokens, first.norm_1)
    tflop = counter.get_total_flops() / 1e12
    return make_row(
        "counts", "before the first text", f"work, 320 channels, {side} px", tflop=tflop,
        quality=tflop / iteration_tflop(SD_V1, side), unit="of an inner iteration",
    )  # fmt: skip


def _inputs(side: int) -> tuple[Tensor, Tensor, Tensor]:
    n = side // SD_V1.vae.downsampling
    context = torch.empty(1, SD_V1.text.context_length, SD_V1.unet.context_dim)
    return torch.empty(1, SD_V1.unet.latent_channels, n, n), torch.empty(1), context


if __name__ == "__main__":
    main()
