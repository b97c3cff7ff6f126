"""Convolution of a map of twice the sides by four products on the small map, with oneDNN.

A 3 x 3 patch of the large map has 2 x 2 different pixels. Which ones depends on whether its row
and its column are even or odd. So each of these four kinds of results is a 2 x 2 convolution of the
small map, whose weights are sums of the 3 x 3 ones: 16 multiplications of a channel for four
results, not 36.
"""

from collections.abc import Iterator
from itertools import product as pairs
from typing import Any

import torch
import torch.nn.functional as F
from nti.kernels.conv2d_onednn import channels_first, channels_last
from nti.kernels.linear_onednn import check, product
from nti.kernels.upsampled_conv2d import reference
from torch import Tensor

__all__ = ["FEWEST", "WORTH", "upsampled_conv2d"]

FEWEST = 256
"""Positions of x from which on the products save more than the sums of weights take, which are
added up at every call (`benchmarks/results/layers.csv`)."""

WORTH = 2**26
"""Positions times weights from which on four products take less time than one convolution."""

BOTH = (0, 1)


def upsampled_conv2d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """See `nti.kernels.upsampled_conv2d.upsampled_conv2d`.

    As one op after the other where it is too small to pay, and in another layout than channels
    last.
    """
    check(x)
    last = all(each.is_contiguous(memory_format=torch.channels_last) for each in (x, weight))
    positions = x.shape[0] * x.shape[2] * x.shape[3]
    if not last or positions < FEWEST or positions * weight.numel() < WORTH:
        return reference(x, weight, bias, backend="onednn")
    out: Tensor = _UpsampledConv2d.apply(x, weight, bias)
    return out


class _UpsampledConv2d(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        b, _, h, w = x.shape
        x = F.pad(channels_last(x), (0, 0, 1, 1, 1, 1))
        out = x.new_empty(b, h, 2, w, 2, len(bias))
        for row, column, summed in _kinds(weight):
            taps = [x[:, row + i :, column + j :][:, :h, :w] for i, j in pairs(BOTH, BOTH)]
            out[:, :, row, :, column] = product(torch.cat(taps, dim=3), summed, bias)
        return channels_first(out.view(b, 2 * h, 2 * w, -1))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        b, _, h, w = grads[0].shape
        h, w = h // 2, w // 2
        grad = channels_last(grads[0]).reshape(b, h, 2, w, 2, -1)
        out = grad.new_zeros(b, h + 2, w + 2, weight.shape[1])
        for row, column, summed in _kinds(weight):
            taps = product(grad[:, :, row, :, column].contiguous(), summed.t()).chunk(4, dim=3)
            for (i, j), tap in zip(pairs(BOTH, BOTH), taps, strict=True):
                out[:, row + i :, column + j :][:, :h, :w] += tap
        return channels_first(out[:, 1:-1, 1:-1]), None, None


def _kinds(weight: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Yield, for even (0) and odd (1) rows and columns, the 2 x 2 weights (o, 2 * 2 * c).

    Each overwrites the one before. To ask for new memory would take as long as the sums do.
    """
    weight = channels_last(weight)
    o, _, _, c = weight.shape
    of_rows, summed = weight.new_empty(o, 2, 3, c), weight.new_empty(o, 2, 2, c)
    for row in BOTH:
        _sum(weight, row, of_rows)
        for column in BOTH:
            for i in BOTH:
                _sum(of_rows[:, i], column, summed[:, i])
            yield row, column, summed.flatten(1)


def _sum(taps: Tensor, odd: int, out: Tensor) -> None:
    """Sum those of three taps (o, 3, ...) that fall on the first and on the second pixel."""
    first, middle, last = taps.unbind(1)
    if odd:
        torch.add(first, middle, out=out[:, 0])
        out[:, 1] = last
    else:
        out[:, 0] = first
        torch.add(middle, last, out=out[:, 1])
