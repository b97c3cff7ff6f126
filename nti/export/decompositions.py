"""What a graph of ONNX says in place of operations that its exporter lacks: backward passes.

All are gradients to an input alone, as the weights are frozen.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import reduce
from torch import Tensor

__all__ = ["RULES"]

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


RULES: dict[Any, Callable[..., Any]] = {
    **torch._decomp.get_decompositions(
        [
            aten.native_group_norm_backward,
            aten.native_layer_norm_backward,
            aten.silu_backward,
            aten.gelu_backward,
            aten._softmax_backward_data,
            aten._safe_softmax,
        ]
    ),
    aten.convolution_backward.default: convolution_backward,
    aten.upsample_nearest2d_backward.default: upsample_nearest2d_backward,
}
"""The project's own, and PyTorch's."""
