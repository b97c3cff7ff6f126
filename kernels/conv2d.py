"""Convolution with frozen weights, which keeps nothing but them for the backward pass.

PyTorch's own saves its whole input too, for a gradient to the weights that nobody asks for here.
"""

from typing import Any

import torch
import torch.nn.functional as F
from nti.kernels.backend import provides
from torch import Tensor

__all__ = ["conv2d", "reference"]

aten = torch.ops.aten


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: int,
    padding: int,
    *,
    backend: str = "reference",
) -> Tensor:
    """Convolution with square kernels.

    Args:
        x: (B, c_in, h, w).
        weight: (c_out, c_in, k, k).
        bias: (c_out,).
        stride: along both sides.
        padding: zeros on all four sides.
        backend: `onednn` and `onednn-products` have a kernel of their own, for float32 on a CPU.

    Returns:
        (B, c_out, h', w'). Differentiable in x alone.

    Raises:
        ValueError: an unknown backend, or an input that oneDNN does not multiply.

    """
    if provides(backend, "conv2d"):
        from nti.kernels import conv2d_onednn

        return conv2d_onednn.conv2d(x, weight, bias, stride, padding)
    return reference(x, weight, bias, stride, padding)


def reference(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
    """The same by PyTorch's convolution."""
    out: Tensor = _Conv2d.apply(x, weight, bias, stride, padding)
    return out


class _Conv2d(torch.autograd.Function):
    """Of its input the gradient to it needs the shape alone."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.stride, ctx.padding = inputs
        ctx.shape = x.shape
        ctx.save_for_backward(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        # Never read; but PyTorch on CUDA lays a gradient out anew if it is not laid out like this.
        last = grads[0].stride(1) == 1
        shape_alone = torch.empty(
            ctx.shape, dtype=grads[0].dtype, device=grads[0].device,
            memory_format=torch.channels_last if last else torch.contiguous_format,
        )  # fmt: skip
        sides = [ctx.stride] * 2, [ctx.padding] * 2, [1, 1]
        grad_x = aten.convolution_backward(
            grads[0], shape_alone, weight, None, *sides, False, [0, 0], 1, [True, False, False]
        )[0]
        return grad_x, None, None, None, None
