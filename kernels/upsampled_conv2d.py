"""Convolution of a map of twice the sides, by frozen weights."""

import torch.nn.functional as F
from nti.kernels.backend import provides
from nti.kernels.conv2d import conv2d
from torch import Tensor

__all__ = ["reference", "upsampled_conv2d"]


def upsampled_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor, *, backend: str = "reference"
) -> Tensor:
    """3x3 convolution, padded with zeros, after x has grown by nearest neighbour.

    Args:
        x: (B, c_in, h, w).
        weight: (c_out, c_in, 3, 3).
        bias: (c_out,).
        backend: `onednn` has a kernel of its own, for float32 on a CPU.

    Returns:
        (B, c_out, 2 h, 2 w). Differentiable in x alone.

    Raises:
        ValueError: an unknown backend, or an input that oneDNN does not multiply.

    """
    if provides(backend, "upsampled_conv2d"):
        from nti.kernels import upsampled_conv2d_onednn

        return upsampled_conv2d_onednn.upsampled_conv2d(x, weight, bias)
    return reference(x, weight, bias, backend=backend)


def reference(x: Tensor, weight: Tensor, bias: Tensor, *, backend: str = "reference") -> Tensor:
    """The same as one op after the other."""
    x = F.interpolate(x, scale_factor=2.0, mode="nearest")
    return conv2d(x, weight, bias, 1, 1, backend=backend)
