"""The feed-forward a few rows at a time, with products by oneDNN.

The rows do not know each other. So both passes take as many at a time as stay in the cache. Beside
x the inside is saved where it is small; that forward pass takes all rows at once. Else the backward
pass computes it again.
"""

from collections.abc import Callable
from typing import Any

import torch
from nti.kernels.feed_forward import reference
from nti.kernels.geglu import geglu_backward, geglu_forward
from nti.kernels.layer_norm import LayerNorm, layer_norm_backward
from nti.kernels.linear_onednn import check, pays, product
from torch import Tensor

__all__ = ["KEPT", "ROWS", "ROWS_A_CHANNEL", "feed_forward"]

aten = torch.ops.aten

ROWS = 512
"""Enough for a product to run at full speed, few enough to stay in the cache."""

KEPT = 24 * 2**20
"""Bytes of the inside up to which it is kept for the backward pass."""

ROWS_A_CHANNEL = 2
"""Up to how many rows for each channel of x the inside is kept. The more channels there are, the
more work a byte of it saves. For one image of 256 or 512 px all sites of Stable Diffusion v1 keep
it but the finest."""


def feed_forward(
    x: Tensor, norm: LayerNorm, w_in: Tensor, b_in: Tensor, w_out: Tensor, b_out: Tensor
) -> Tensor:
    """See `nti.kernels.feed_forward.feed_forward`; too small to pay, it is the reference's."""
    check(x)
    if not pays(x.shape[:-1].numel(), w_in):
        return reference(x, norm, w_in, b_in, w_out, b_out)
    out: Tensor = _FeedForward.apply(x, *norm, w_in, b_in, w_out, b_out)[0]
    return out


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor, scale: Tensor, shift: Tensor, eps: float, w_in: Tensor, b_in: Tensor,
        w_out: Tensor, b_out: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        given = scale, shift, eps, w_in, b_in

        def result(wide: Tensor) -> Tensor:
            return product(geglu_forward(wide), w_out, b_out)

        rows = x.shape[:-1].numel()
        if rows <= ROWS_A_CHANNEL * x.shape[-1] and rows * b_in.nbytes <= KEPT:
            kept = _inside(x, *given)
            return result(kept[0]), *kept
        return (_by_rows(lambda rows: result(_inside(rows, *given)[0]), x),)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, scale, shift, ctx.eps, w_in, b_in, w_out, _ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, scale, shift, w_in, b_in, w_out, *output[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, w_in, b_in, w_out, *kept = ctx.saved_tensors

        def run(rows: Tensor, grad: Tensor, *kept: Tensor) -> Tensor:
            wide, mean, rstd = kept or _inside(rows, scale, shift, ctx.eps, w_in, b_in)
            grad = product(geglu_backward(product(grad, w_out.t()), wide), w_in.t())
            return layer_norm_backward(grad, rows, scale, shift, mean, rstd)

        return _by_rows(run, x, grads[0], *kept), *[None] * 7


def _inside(
    rows: Tensor, scale: Tensor, shift: Tensor, eps: float, w_in: Tensor, b_in: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the inside before GEGLU (..., 2i), and each row's mean and 1 / std (..., 1)."""
    normed, mean, rstd = aten.native_layer_norm(rows, scale.shape, scale, shift, eps)
    return product(normed, w_in, b_in), mean, rstd


def _by_rows(run: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Run on a few rows at a time of tensors (..., c), and put the results together."""
    parts = (torch.split(x.flatten(0, -2), ROWS) for x in tensors)
    return torch.cat([run(*rows) for rows in zip(*parts, strict=True)]).view(tensors[0].shape)
