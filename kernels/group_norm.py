"""GroupNorm of frozen weights, with the SiLU that follows it in a residual block."""

from typing import Any

import torch
import torch.nn.functional as F
from nti.kernels.backend import provides
from torch import Tensor

__all__ = ["centred", "group_norm", "reference"]

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
        (B, c, h, w) in x's dtype. Differentiable in x alone; x and at most two
        numbers a channel are saved.

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
    """The same on PyTorch's GroupNorm and SiLU, but for channels last on a CPU.

    There PyTorch computes the variance as E[x^2] - E[x]^2, and adds up all positions one by one.
    Its error grows with |mean| / std and with the size of the map: 1e-4 at 30 for (2, 320, 32, 32),
    2e-5 at 0 for (1, 128, 512, 512).
    """
    last = x.device.type == "cpu" and x.stride(1) == 1
    if not (last or silu):
        return F.group_norm(x, groups, weight.detach(), bias.detach(), eps)
    out: Tensor = (
        _ChannelsLast.apply(x, weight, bias, groups, eps, silu)
        if last
        else _GroupNormSiLU.apply(x, weight, bias, groups, eps)
    )[0]
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
        grad = aten.silu_backward(grads[0], normed).contiguous()
        sizes = x.shape[0], x.shape[1], x.shape[2] * x.shape[3], ctx.groups
        mask = [True, False, False]
        grad_x = aten.native_group_norm_backward(
            grad, x.contiguous(), mean, rstd, weight, *sizes, mask
        )[0]
        return grad_x, None, None, None, None


def _group_norm(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    n, c, h, w = x.shape
    out: tuple[Tensor, Tensor, Tensor] = aten.native_group_norm(
        x.contiguous(), weight, bias, n, c, h * w, groups, eps
    )
    return out


class _ChannelsLast(torch.autograd.Function):
    """Moments in two passes: the mean, then the mean square of x - mean.

    `Tensor.mean` adds up pairwise. PyTorch's own backward pass is exact once x is centred.
    """

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = _wide(x)
        mean = _group_mean(wide, groups)
        # One pass over the map where a difference and its square are two.
        squares = F.mse_loss(wide, mean.expand_as(wide), reduction="none")
        rstd = (_group_mean(squares, groups) + eps).rsqrt()
        del squares
        scale = rstd * _wide(weight)[:, None, None]
        y = torch.addcmul(_wide(bias)[:, None, None] - mean * scale, wide, scale)
        if silu:
            F.silu(y, inplace=True)
        return y.to(x.dtype), mean, rstd

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, bias, ctx.groups, _, ctx.silu = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, bias, *output[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        (n, c, h, w), groups = x.shape, ctx.groups
        weight, centred, d_y = _wide(weight), _wide(x) - mean, _wide(grads[0])
        d_y = d_y.contiguous(memory_format=torch.channels_last)
        if ctx.silu:
            scale = rstd * weight[:, None, None]
            d_y = aten.silu_backward(d_y, torch.addcmul(_wide(bias)[:, None, None], centred, scale))
        rstd = rstd[:, :: c // groups].reshape(n, groups)
        d_x = aten.native_group_norm_backward(
            d_y, centred.contiguous(memory_format=torch.channels_last), torch.zeros_like(rstd),
            rstd, weight, n, c, h * w, groups, [True, False, False],
        )[0]  # fmt: skip
        return d_x.to(x.dtype), None, None, None, None, None


def centred(x: Tensor, groups: int) -> Tensor:
    """Return x less the mean of each group, as a constant, in channels last on a CPU; else x.

    GroupNorm does not change by it, and its gradient neither, but PyTorch's variance in one pass
    becomes exact. It is for norms whose weights learn.
    """
    if x.device.type != "cpu" or x.stride(1) != 1:
        return x
    return x - _group_mean(_wide(x.detach()), groups).to(x.dtype)


def _wide(x: Tensor) -> Tensor:
    """In the dtype that is computed in: float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _group_mean(x: Tensor, groups: int) -> Tensor:
    """(B, c, h, w) -> (B, c, 1, 1), for each channel the mean of its group."""
    # With the groups as an axis throughout: else a compiled loop over channels divides for each.
    n, c, h, w = x.shape
    mean = x.view(n, groups, c // groups, h, w).mean((3, 4)).mean(2, keepdim=True)
    return mean.expand(-1, -1, c // groups).reshape(n, c, 1, 1)
