"""Products with frozen weights in float32 on a CPU, by oneDNN.

PyTorch leaves such products to its BLAS, on x86 MKL, and convolutions to oneDNN. On the processor
that was measured (AMD EPYC, section `roofline` of the benchmarks) oneDNN multiplies twice as fast.
So a linear layer is given to it, and so is a convolution at few positions, as a product with the
columns of its patches: oneDNN's own convolution copies the weights into another layout at every
call, which takes longer there than the product does.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["columns", "is_onednn", "linear", "scatter_columns"]


def is_onednn(x: Tensor) -> bool:
    """Whether `linear` gives x to oneDNN: float32 on a CPU that PyTorch was built with it for."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return False
    return hasattr(torch.ops.mkldnn, "_linear_pointwise") and bool(torch.backends.mkldnn.enabled)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """X W^T + b: (..., i), (o, i), (o,) -> (..., o), without a gradient."""
    if is_onednn(x):
        # The op that torch.compile itself puts in the place of a linear layer on a CPU.
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return out
    return F.linear(x, weight, bias)


def columns(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """The patch under each position of a convolution: (B, h, w, c) -> (B, h', w', k * k * c)."""
    if (kernel, stride, padding) == (1, 1, 0):
        return x
    x = F.pad(x, (0, 0, padding, padding, padding, padding))
    patches = x.unfold(1, kernel, stride).unfold(2, kernel, stride)
    return patches.permute(0, 1, 2, 4, 5, 3).flatten(3)


def scatter_columns(
    patches: Tensor, shape: tuple[int, ...], kernel: int, stride: int, padding: int
) -> Tensor:
    """The transpose of `columns`: (B, h', w', k * k * c) -> sums of `shape` (B, h, w, c)."""
    if (kernel, stride, padding) == (1, 1, 0):
        return patches
    b, h, w, c = shape
    out = patches.new_zeros(b, h + 2 * padding, w + 2 * padding, c)
    rows, cols = patches.shape[1] * stride, patches.shape[2] * stride
    for i, patch in enumerate(torch.split(patches, c, dim=-1)):
        y, x = divmod(i, kernel)
        out[:, y : y + rows : stride, x : x + cols : stride] += patch
    return out[:, padding : padding + h, padding : padding + w]
