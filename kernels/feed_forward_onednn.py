"""The feed-forward a few rows at a time, with products by oneDNN.

The rows do not know each other. So both passes take as many at a time as stay in the cache, and x
alone is saved: the backward pass computes the inside again.
"""

from collections.abc import Callable
from typing import Any

import torch
from nti.kernels.feed_forward import reference
from nti.kernels.geglu import geglu_backward, geglu_forward
from nti.kernels.layer_norm import LayerNorm, layer_norm_backward
from nti.kernels.linear_onednn import check, pays, product
from torch import Tensor

__all__ = ["ROWS", "feed_forward"]

aten = torch.ops.aten

ROWS = 512
"""Enough for a product to run at full speed, few enough to stay in the cache."""


def feed_forward(
    x: Tensor, norm: LayerNorm, w_in: Tensor, b_in: Tensor, w_out: Tensor, b_out: Tensor
) -> Tensor:
    """See `nti.kernels.feed_forward.feed_forward`; too small to pay, it is the reference's."""
    check(x)
    if not pays(x.shape[:-1].numel(), w_in):
        return reference(x, norm, w_in, b_in, w_out, b_out)
    out: Tensor = _FeedForward.apply(x, *norm, w_in, b_in, w_out, b_out)
    return out


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor, scale: Tensor, shift: Tensor, eps: float, w_in: Tensor, b_in: Tensor,
        w_out: Tensor, b_out: Tensor,
    ) -> Tensor:  # fmt: skip
        norm = LayerNorm(scale, shift, eps)

        def run(rows: Tensor) -> Tensor:
            return product(geglu_forward(product(norm(rows), w_in, b_in)), w_out, b_out)

        return _by_rows(run, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, scale, shift, ctx.eps, w_in, b_in, w_out, _ = inputs
        ctx.save_for_backward(x, scale, shift, w_in, b_in, w_out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, w_in, b_in, w_out = ctx.saved_tensors

        def run(rows: Tensor, grad: Tensor) -> Tensor:
            normed, mean, rstd = aten.native_layer_norm(rows, scale.shape, scale, shift, ctx.eps)
            wide = product(normed, w_in, b_in)
            grad = product(geglu_backward(product(grad, w_out.t()), wide), w_in.t())
            return layer_norm_backward(grad, rows, scale, shift, mean, rstd)

        return _by_rows(run, x, grads[0]), *[None] * 7


def _by_rows(run: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Run on a few rows at a time of tensors (..., c), and put the results together."""
    parts = (torch.split(x.flatten(0, -2), ROWS) for x in tensors)
    return torch.cat([run(*rows) for rows in zip(*parts, strict=True)]).view(tensors[0].shape)
