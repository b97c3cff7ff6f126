"""Layers of the UNet: they hold frozen weights, and the kernels compute.

The kernels keep for the backward pass only what the gradient to their input needs. A layer of which
a weight learns, as in training, is PyTorch's own.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nti.kernels.conv2d import conv2d
from nti.kernels.feed_forward import feed_forward
from nti.kernels.group_norm import centred, group_norm
from nti.kernels.layer_norm import LayerNorm
from nti.kernels.linear import linear
from nti.kernels.upsampled_conv2d import upsampled_conv2d
from nti.vjp import vjp

__all__ = [
    "Conv2d",
    "FeedForward",
    "GroupNorm",
    "GroupNormSiLU",
    "Linear",
    "Upsample",
    "frozen_or_reference",
    "layer_norm",
    "recomputed",
]


def frozen_or_reference(backend: str, *weights: Tensor | None) -> str:
    """Return the backend, or the reference where one of the weights learns."""
    learns = any(each is not None and each.requires_grad for each in weights)
    return "reference" if learns else backend


def layer_norm(norm: nn.LayerNorm) -> LayerNorm:
    """Return what a kernel needs of a layer norm."""
    return LayerNorm(norm.weight, norm.bias, norm.eps)


class Linear(nn.Linear):
    """Product with a matrix."""

    def __init__(self, c_in: int, c_out: int, *, bias: bool = True, backend: str = "reference"):
        super().__init__(c_in, c_out, bias=bias)
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        """(..., c_in) -> (..., c_out)."""
        backend = frozen_or_reference(self.backend, self.weight, self.bias)
        return linear(x, self.weight, self.bias, backend=backend)


class Conv2d(nn.Conv2d):
    """Convolution of square kernels, padded with zeros."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        backend: str = "reference",
    ) -> None:
        super().__init__(c_in, c_out, kernel, stride, padding)
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, h, w) -> (B, c_out, h', w')."""
        assert self.bias is not None
        if self.weight.requires_grad or self.bias.requires_grad:
            return super().forward(x)
        stride, padding = int(self.stride[0]), int(self.padding[0])
        return conv2d(x, self.weight, self.bias, stride, padding, backend=self.backend)


class Upsample(nn.Module):
    """Double the sides: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int, *, backend: str = "reference") -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1, backend=backend)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c, h, w) -> (B, c, 2 h, 2 w). Frozen, `conv` holds the weights and is not called."""
        weight, bias = self.conv.weight, self.conv.bias
        assert bias is not None
        if weight.requires_grad or bias.requires_grad:
            learned: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
            return learned
        return upsampled_conv2d(x, weight, bias, backend=self.conv.backend)


class GroupNorm(nn.GroupNorm):
    """GroupNorm of feature maps."""

    silu = False

    def __init__(
        self, groups: int, channels: int, *, eps: float, backend: str = "reference"
    ) -> None:
        super().__init__(groups, channels, eps=eps)
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        """(B, c, h, w) -> the same shape."""
        if self.weight.requires_grad or self.bias.requires_grad:
            normed = super().forward(centred(x, self.num_groups))
            return F.silu(normed) if self.silu else normed
        return group_norm(
            x, self.weight, self.bias, self.num_groups, self.eps,
            silu=self.silu, backend=self.backend,
        )  # fmt: skip


class GroupNormSiLU(GroupNorm):
    """silu(GroupNorm(x))."""

    silu = True


class FeedForward(nn.Module):
    """Two linear layers around GEGLU, four times as wide inside."""

    def __init__(self, channels: int, *, backend: str = "reference") -> None:
        super().__init__()
        self.backend = backend
        self.proj_in = Linear(channels, 8 * channels, backend=backend)
        self.proj_out = Linear(4 * channels, channels, backend=backend)

    def forward(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """X (B, L, c) -> the same shape, of x after its norm."""
        into, out = self.proj_in, self.proj_out
        weights = into.weight, into.bias, out.weight, out.bias
        backend = frozen_or_reference(self.backend, *weights, norm.weight, norm.bias)
        return feed_forward(x, layer_norm(norm), *weights, backend=backend)


def recomputed(run: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """run(*inputs), which saves the inputs alone and runs again in the backward pass.

    torch.utils.checkpoint does the same, but not under torch.func.
    """
    out: Tensor = _Recomputed.apply(run, *inputs)
    return out


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(run: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        return run(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.run = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        _, pull = vjp(ctx.run, *ctx.saved_tensors)
        return None, *pull(grads[0])
