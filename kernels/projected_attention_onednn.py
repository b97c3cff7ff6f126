"""Attention from its input with products by oneDNN, which projects again in the backward pass what
is large.

Beside x and the context the result and a number a query are saved, and q, k and v where they are
small.
"""

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from nti.kernels.layer_norm import LayerNorm, layer_norm_backward
from nti.kernels.linear_onednn import check, pays, product
from nti.kernels.projected_attention import Projections, merge_heads, reference
from torch import Tensor

__all__ = ["projected_attention"]

aten = torch.ops.aten

KEPT = 4 * 2**20
"""Bytes of q, k and v together up to which they are kept for the backward pass: all sites of a
256 px image, where keeping them saves 2 to 3 % of an inner iteration."""


def projected_attention(
    x: Tensor, norm: LayerNorm, context: Tensor | None, projections: Projections, heads: int
) -> Tensor:
    """See `nti.kernels.projected_attention.projected_attention`.

    Too small to pay, it is the reference's.
    """
    check(x)
    if not pays(x.shape[:-1].numel(), projections[0]):
        return reference(x, norm, context, projections, heads, backend="onednn")
    out: Tensor = _ProjectedAttention.apply(x, context, *norm, heads, *projections)[0]
    return out


class _ProjectedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor, context: Tensor | None, scale: Tensor, shift: Tensor, eps: float, heads: int,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        qkv = _project(LayerNorm(scale, shift, eps)(x), context, heads, weights)
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(*qkv)
        kept = qkv if sum(part.nbytes for part in qkv) <= KEPT else ()
        return merge_heads(out), lse, *kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, context, scale, shift, ctx.eps, ctx.heads, *weights = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, context, scale, shift, *weights, *output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, context, scale, shift, *weights_and_output = ctx.saved_tensors
        weights, (out, lse, *kept) = weights_and_output[:3], weights_and_output[3:]
        normed, mean, rstd = aten.native_layer_norm(x, scale.shape, scale, shift, ctx.eps)
        qkv = kept or _project(normed, context, ctx.heads, weights)
        of_qkv = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            _heads(grads[0], ctx.heads), *qkv, _heads(out, ctx.heads), lse, 0.0, False
        )
        of_normed, of_k, of_v = (
            product(merge_heads(grad), w.t()) for grad, w in zip(of_qkv, weights, strict=True)
        )
        of_source = of_k.add_(of_v)
        if context is None:
            of_normed += of_source
        of_x = layer_norm_backward(of_normed, x, scale, shift, mean, rstd)
        return of_x, None if context is None else of_source, *[None] * 7


def _project(
    normed: Tensor, context: Tensor | None, heads: int, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    source = normed if context is None else context
    inputs = normed, source, source
    q, k, v = (_heads(product(x, w), heads) for x, w in zip(inputs, weights, strict=True))
    return q, k, v


def _heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, heads * d) -> (B, heads, L, d)."""
    return rearrange(x, "b l (heads d) -> b heads l d", heads=heads)
