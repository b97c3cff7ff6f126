"""What a graph says in place of operations that its reader lacks or is slow at.

They are backward passes and attention's softmax. Gradients are to an input alone, as the weights
are frozen.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor

__all__ = ["ONNX_RULES", "PACKAGE_RULES"]

aten = torch.ops.aten


def convolution_backward(
    gradient: Tensor,
    image: Tensor,
    weight: Tensor,
    bias_sizes: list[int] | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    wanted: list[bool],
) -> tuple[Tensor | None, None, None]:
    """The gradient to a convolution's input: the convolution turned around."""
    if transposed or groups != 1 or list(dilation) != [1, 1] or wanted[1] or wanted[2]:
        raise NotImplementedError(
            "convolution_backward: expected a plain convolution and the gradient to its input alone"
        )
    kernel = weight.shape[2:]
    if not wanted[0]:
        return None, None, None
    if list(stride) == [1, 1]:
        turned = weight.flip(2, 3).transpose(0, 1)
        around = [k - 1 - p for k, p in zip(kernel, padding, strict=True)]
        return F.conv2d(gradient, turned, padding=around), None, None
    missing = [
        size - ((out - 1) * step - 2 * pad + k)
        for size, out, step, pad, k in zip(
            image.shape[2:], gradient.shape[2:], stride, padding, kernel, strict=True
        )
    ]
    return (
        F.conv_transpose2d(
            gradient, weight, stride=stride, padding=padding, output_padding=missing
        ),
        None,
        None,
    )


def upsample_nearest2d_backward(
    gradient: Tensor,
    output_size: list[int],
    input_size: list[int],
    scales_h: float | None = None,
    scales_w: float | None = None,
) -> Tensor:
    """The gradient to an image whose pixels were repeated: the sum over each one's copies."""
    height, width = input_size[2:]
    rows, columns = gradient.shape[2] // height, gradient.shape[3] // width
    if gradient.shape[2:] != (rows * height, columns * width):
        raise NotImplementedError("upsample_nearest2d_backward: expected a whole factor")
    return reduce(gradient, "b c (h y) (w x) -> b c h w", "sum", y=rows, x=columns)


def group_norm_backward(
    gradient: Tensor,
    image: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    n: int,
    channels: int,
    positions: int,
    groups: int,
    wanted: list[bool],
) -> tuple[Tensor | None, None, None]:
    """The gradient to GroupNorm's input, from sums over the positions of (n, channels, h, w).

    PyTorch's own rule has the positions as one axis, of which its compiler makes slower loops where
    maps are in channels last. The sums are in float32 at least.
    """
    if weight is None or image.ndim != 4 or wanted[1] or wanted[2]:
        raise NotImplementedError(
            "group_norm_backward: expected maps, weights and the gradient to the input alone"
        )
    if not wanted[0]:
        return None, None, None
    # The groups are an axis: else a compiled loop over channels divides to find each one's group.
    parts = n, groups, channels // groups, *image.shape[2:]
    x, d_y, mean, rstd, scale = (
        each.to(torch.promote_types(each.dtype, torch.float32))
        for each in (image.view(parts), gradient.view(parts), mean, rstd, weight.view(groups, -1))
    )
    of_sums = (d_y.sum((3, 4)) * scale).sum(2)
    of_products = ((d_y * x).sum((3, 4)) * scale).sum(2)
    size = positions * channels // groups
    slope = (of_sums * mean - of_products) * rstd**3 / size
    offset = -slope * mean - of_sums * rstd / size
    rstd, slope, offset = (each[:, :, None, None, None] for each in (rstd, slope, offset))
    d_x = d_y * (rstd * scale[:, :, None, None]) + x * slope + offset
    return d_x.flatten(1, 2).to(image.dtype), None, None


def softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Softmax without PyTorch's care for rows that are masked whole: here no row is masked.

    With it a runtime looks for such rows in each attention map.
    """
    return torch.softmax(x, dim, dtype=dtype)


PACKAGE_RULES: dict[Any, Callable[..., Any]] = {
    aten.native_group_norm_backward.default: group_norm_backward,
}
"""Of what PyTorch's compiler has no good loops for."""

ONNX_RULES: dict[Any, Callable[..., Any]] = {
    **torch._decomp.get_decompositions(
        [
            aten.native_layer_norm_backward,
            aten.silu_backward,
            aten.gelu_backward,
            aten._softmax_backward_data,
        ]
    ),
    **PACKAGE_RULES,
    aten._safe_softmax.default: softmax,
    aten.convolution_backward.default: convolution_backward,
    aten.upsample_nearest2d_backward.default: upsample_nearest2d_backward,
}
"""Of what ONNX lacks: the project's own, and PyTorch's."""
