"""Products with frozen weights in float32 on a CPU, by oneDNN.

PyTorch leaves such products to its BLAS, on x86 MKL, and convolutions to oneDNN. On three AMD
processors that were measured (section `roofline` of the benchmarks) oneDNN multiplies 1.1, 2.0 and
2.2 times as fast.
"""

from typing import Any

import torch
import torch.nn.functional as F
from nti.kernels.backend import has_onednn
from torch import Tensor

__all__ = ["WORTH", "check", "linear", "pays", "product"]

WORTH = 2**23
"""Multiply-adds from which on oneDNN, and the way to it, take less time than PyTorch's own layer
(`benchmarks/results/layers.csv`)."""


def pays(positions: int, weight: Tensor) -> bool:
    """Whether a product of so many rows with a matrix is work enough for oneDNN."""
    return positions * weight.numel() >= WORTH


def check(x: Tensor) -> None:
    """Raise ValueError for an input that oneDNN does not multiply."""
    if not has_onednn(x.device, x.dtype):
        raise ValueError(
            f"x: got {x.dtype} on {x.device}, but oneDNN multiplies float32 on a CPU, by a PyTorch"
            " that was built with it: use backend='reference'"
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See `nti.kernels.linear.linear`; the weights alone are saved.

    A product that is too small to pay is PyTorch's.
    """
    check(x)
    if not pays(x.shape[:-1].numel(), weight):
        return F.linear(x, weight, bias)
    out: Tensor = _Linear.apply(x, weight, bias)
    return out


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """X W^T + b: (..., i), (o, i), (o,) -> (..., o), without a gradient."""
    # The op that torch.compile itself puts in the place of a linear layer on a CPU.
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return product(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return product(grads[0], weight.t()), None, None
