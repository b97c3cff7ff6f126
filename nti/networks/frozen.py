"""Layers of frozen weights, which keep for the backward pass only what the gradient to their input
needs.

PyTorch saves for each of GroupNorm, SiLU and convolution its whole input, the last for a weight
gradient that nobody asks for here. These save one tensor where those save three: what a backward
pass can compute again in less time than the convolution beside it takes, it does. With weights that
do learn (training the embedded model) each falls back to PyTorch's own.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

__all__ = ["Conv2d", "GroupNormSiLU", "geglu", "recomputed"]

aten = torch.ops.aten


class Conv2d(nn.Conv2d):
    """Convolution that saves nothing but its weights."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, h, w) -> (B, c_out, h', w')."""
        if self.weight.requires_grad:
            return super().forward(x)
        out: Tensor = _Conv2d.apply(x, self.weight, self.bias, self.stride, self.padding)
        return out


class _Conv2d(torch.autograd.Function):
    """Its gradient to the input depends on the input's shape alone."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]
    ) -> Tensor:
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.stride, ctx.padding = inputs
        ctx.shape = x.shape
        ctx.save_for_backward(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        shape_alone = grads[0].new_empty(1).expand(ctx.shape)
        settings = [ctx.stride, ctx.padding, [1, 1], False, [0, 0], 1, [True, False, False]]
        grad_x = aten.convolution_backward(grads[0], shape_alone, weight, None, *settings)[0]
        return grad_x, None, None, None, None


class GroupNormSiLU(nn.GroupNorm):
    """silu(GroupNorm(x)), which saves x and two numbers a group."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, c, h, w) -> the same shape."""
        if self.weight.requires_grad:
            return F.silu(super().forward(x))
        out: Tensor = _GroupNormSiLU.apply(x, self.weight, self.bias, self.num_groups, self.eps)[0]
        return out


class _GroupNormSiLU(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        normed, mean, rstd = _group_norm(x, weight, bias, groups, eps)
        return F.silu(normed), mean, rstd

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, bias, ctx.groups, ctx.eps = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(x, weight, bias, *output[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        normed, _, _ = _group_norm(x, weight, bias, ctx.groups, ctx.eps)
        grad = _laid_out(aten.silu_backward(grads[0], normed), x)
        x = _laid_out(x, x)
        sizes = x.shape[0], x.shape[1], x.shape[2] * x.shape[3], ctx.groups
        mask = [True, False, False]
        grad_x = aten.native_group_norm_backward(grad, x, mean, rstd, weight, *sizes, mask)[0]
        return grad_x, None, None, None, None


def _group_norm(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    n, c, h, w = x.shape
    out: tuple[Tensor, Tensor, Tensor] = aten.native_group_norm(
        _laid_out(x, x), weight, bias, n, c, h * w, groups, eps
    )
    return out


def _laid_out(y: Tensor, x: Tensor) -> Tensor:
    """Return y in the layout that GroupNorm of x takes: channels last on the CPU alone."""
    last = x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last)
    return y.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def geglu(x: Tensor) -> Tensor:
    """GEGLU (Shazeer 2020, arXiv 2002.05202) with the exact GELU: (..., 2c) -> (..., c).

    The first half of the channels is the value, the second the gate. Saves x alone.
    """
    out: Tensor = _GEGLU.apply(x)
    return out


class _GEGLU(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return F.gelu(gate).mul_(value)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        value, gate = ctx.saved_tensors[0].chunk(2, dim=-1)
        grad_gate = aten.gelu_backward(grads[0] * value, gate)
        return torch.cat([F.gelu(gate).mul_(grads[0]), grad_gate], dim=-1)


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
        _, pull = torch.func.vjp(ctx.run, *ctx.saved_tensors)  # type: ignore[misc]
        return None, *pull(grads[0])
