"""What an inner iteration of Stable Diffusion v1 dispatches on a GPU, counted without one."""

from collections import Counter

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
from checks import Watch
from nti.config import SD_V1
from nti.networks.unet import UNet

FREE = ("aten::_unsafe_view", "aten::empty", "aten::empty_like", "aten::new_empty", "aten::clone")
"""They look at memory, or ask for it. Copies are not to be counted here: convolutions on the meta
device forget their layout (`layer_checks` looks for copies, on the CPU)."""


def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What PyTorch's attention is on a GPU in half precision, and on the meta device is not."""
    out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
    return out


def ops_of_an_iteration(backend: str) -> Counter[str]:
    """Count an inner iteration's ops at 512 px in float16, the meta device standing for CUDA."""
    with torch.device("meta"):
        unet = UNet(SD_V1.unet, backend=backend).half().requires_grad_(False)
        unet.to(memory_format=torch.channels_last)
        latent = torch.empty(1, 4, 64, 64).half().to(memory_format=torch.channels_last)
        context = torch.empty(1, 77, 768).half().requires_grad_()
        timestep = torch.empty(1, dtype=torch.int64)
    with pytest.MonkeyPatch.context() as patch, Watch() as watch:
        patch.setattr("torch.nn.functional.scaled_dot_product_attention", flash)
        eps, _ = unet(latent, timestep, context)
        torch.autograd.grad(eps, context, torch.empty_like(eps))
    names = [op.name().split(".")[0] for op, _ in watch.given if not op.is_view]
    return Counter(name for name in names if name not in FREE)


def test_each_layer_is_one_op() -> None:
    ops = ops_of_an_iteration("triton")
    products = {"convolution", "convolution_backward", "mm", "addmm"}
    norms = {"native_layer_norm", "native_layer_norm_backward"}
    attention = "_scaled_dot_product_flash_attention"
    norms |= {attention, f"{attention}_backward"}
    rest = {"add", "cat", "upsample_nearest2d", "upsample_nearest2d_backward"}
    time = {"_to_copy", "arange", "mul", "div", "exp", "cos", "sin", "silu"}
    ours = {name for name in ops if name.startswith("nti::")}
    assert ops.keys() == ours | {f"aten::{name}" for name in products | norms | rest | time}
    # Of the timestep's embedding, a number or a vector each.
    assert sum(ops[f"aten::{name}"] for name in time) == 11
    # 22 residual blocks of two norms, 16 transformers of one, one at the end. No gradient goes to
    # what comes before the first text: a block, a norm and a self-attention.
    norms = 22 * 2 + 16 + 1
    assert (ops["nti::group_norm_fwd"], ops["nti::group_norm_bwd"]) == (norms, norms - 3)
    assert ops["nti::geglu_fwd"] == ops["nti::geglu_bwd"] == 16
    assert (ops[f"aten::{attention}"], ops[f"aten::{attention}_backward"]) == (32, 31)


def main() -> None:
    """Print the table of docs/kernels.md."""
    theirs, ours = ops_of_an_iteration("triton-attention"), ops_of_an_iteration("triton")
    print("| op | PyTorch's norms and GEGLU | Triton's |\n|---|---:|---:|")
    for name in sorted(theirs | ours):
        print(f"| `{name}` | {theirs[name]} | {ours[name]} |")
    print(f"| together | {theirs.total()} | {ours.total()} |")


if __name__ == "__main__":
    main()
