"""Convolutions at few positions as products by oneDNN, with the columns of their patches.

oneDNN's own convolution copies the weights into another layout at every call. At few positions
that takes longer than the product does.
"""

from typing import Any

import torch
import torch.nn.functional as F
from nti.kernels.conv2d import _Conv2d, reference
from nti.kernels.linear_onednn import check, pays, product
from torch import Tensor

__all__ = ["channels_first", "channels_last", "columns", "conv2d", "scatter_columns"]


def conv2d(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
    """See `nti.kernels.conv2d.conv2d`.

    PyTorch's own where columns would be larger than the weights are, or in another layout than
    channels last.
    """
    check(x)
    if not _is_product(x, weight, stride):
        return reference(x, weight, bias, stride, padding)
    out: Tensor = _ColumnsConv2d.apply(x, weight, bias, stride, padding)
    return out


def _is_product(x: Tensor, weight: Tensor, stride: int) -> bool:
    positions = x.shape[0] * x.shape[2] * x.shape[3] // stride**2
    return (
        pays(positions, weight)
        and (positions <= weight.shape[0] or weight.shape[-1] == 1)
        and x.is_contiguous(memory_format=torch.channels_last)
        and weight.is_contiguous(memory_format=torch.channels_last)
    )


class _ColumnsConv2d(_Conv2d):
    """The same as one product, for square kernels and channels last."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
        patches = columns(channels_last(x), weight.shape[-1], stride, padding)
        return channels_first(product(patches, _matrix(weight), bias))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        patches = product(channels_last(grads[0]).contiguous(), _matrix(weight).t())
        b, c, h, w = ctx.shape
        grad = scatter_columns(patches, (b, h, w, c), weight.shape[-1], ctx.stride, ctx.padding)
        return channels_first(grad), None, None, None, None


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
    if stride > 1:
        gaps = stride - 1
        patches = F.pad(patches[:, :, None, :, None], (0, 0, 0, gaps, 0, 0, 0, gaps))
        patches = patches.flatten(3, 4).flatten(1, 2)
    before = kernel - 1 - padding
    below, right = h + padding - patches.shape[1], w + padding - patches.shape[2]
    patches = F.pad(patches, (0, 0, before, right, before, below))
    out = patches.new_zeros(b, h, w, c)
    # Slices of what is padded once are one loop for a compiler. Adding each patch to its own place
    # in the result makes it ask, for each, whether a position lies in that place: nine questions
    # within each other for a 3 x 3 kernel.
    for i, part in enumerate(torch.split(patches, c, dim=-1)):
        y, x = divmod(i, kernel)
        out += part[:, kernel - 1 - y :, kernel - 1 - x :][:, :h, :w]
    return out


def channels_last(x: Tensor) -> Tensor:
    """(B, c, h, w) -> (B, h, w, c)."""
    return x.permute(0, 2, 3, 1)


def channels_first(x: Tensor) -> Tensor:
    """(B, h, w, c) -> (B, c, h, w)."""
    return x.permute(0, 3, 1, 2)


def _matrix(weight: Tensor) -> Tensor:
    """Weights (o, c, k, k) -> (o, k * k * c), the order of `columns`."""
    return channels_last(weight).flatten(1)
