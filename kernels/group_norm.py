"""GroupNorm of frozen weights, with the SiLU that follows it in a residual block."""

from typing import Any

import torch
import torch.nn.functional as F
from nti.kernels.backend import provides
from torch import Tensor

__all__ = ["group_norm", "reference"]

aten = torch.ops.aten


def group_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    *,
    silu: bool = False,
    backend: str = "reference",
) -> Tensor:
    """GroupNorm (Wu and He 2018, arXiv 1803.08494), then SiLU if asked.

    Args:
        x: (B, c, h, w); channels last in memory is free of copies.
        weight: (c,).
        bias: (c,).
        groups: into how many the channels are divided; each is normalised over its channels and
            all positions.
        eps: added to the variance.
        silu: whether to return y sigmoid(y) instead of y.
        backend: `reference` or `triton`; the latter takes float16, bfloat16 and float32.

    Returns:
        (B, c, h, w) in x's dtype. Differentiable in x alone; x and two numbers a group are saved.

    Raises:
        ValueError: an unknown backend, or inputs that the Triton kernels do not take.

    """
    if provides(backend, "group_norm"):
        from nti.kernels import group_norm_triton

        return group_norm_triton.group_norm(x, weight, bias, groups, eps, silu)
    return reference(x, weight, bias, groups, eps, silu)


def reference(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool = False
) -> Tensor:
    """The same on PyTorch's GroupNorm and SiLU."""
    if not silu:
        return F.group_norm(x, groups, weight.detach(), bias.detach(), eps)
    out: Tensor = _GroupNormSiLU.apply(x, weight, bias, groups, eps)[0]
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
        ctx.set_materialize_grads(False)
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
