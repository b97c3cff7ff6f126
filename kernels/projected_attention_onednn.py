"""Attention from its input with products by oneDNN, which projects again in the backward pass what
is large.

Beside x and the context the result and a number a query are saved, and q, k and v where they are
small.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from einops import rearrange
from nti.kernels.layer_norm import LayerNorm, layer_norm_backward
from nti.kernels.linear_onednn import check, pays, product
from nti.kernels.projected_attention import Projections, merge_heads, reference
from torch import Tensor

__all__ = ["attention", "attention_backward", "projected_attention"]

aten = torch.ops.aten

KEPT = 4 * 2**20
"""Bytes of q, k and v together up to which they are kept for the backward pass: all sites of a
256 px image, where keeping them saves 2 to 3 % of an inner iteration."""

LARGE = 1024
"""Keys from which on blocks of oneDNN's products take less time than PyTorch's kernel, which
multiplies by MKL (`benchmarks/results/layers.csv`)."""

BLOCK = 2**20
"""Cells of a block: few enough to stay in the cache."""

LOG2_E = math.log2(math.e)
"""exp(s) is computed as exp2(s log2(e)): PyTorch leaves exp to MKL, but not exp2, which takes a
quarter of the time on the AMD processor that was measured (`benchmarks/results/layers.csv`)."""


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
        out, lse = attention(*qkv)
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
        of_qkv = attention_backward(_heads(grads[0], ctx.heads), qkv, _heads(out, ctx.heads), lse)
        of_normed, of_k, of_v = (
            product(merge_heads(grad), w.t()) for grad, w in zip(of_qkv, weights, strict=True)
        )
        of_source = of_k.add_(of_v)
        if context is None:
            of_normed += of_source
        of_x = layer_norm_backward(of_normed, x, scale, shift, mean, rstd)
        return of_x, None if context is None else of_source, *[None] * 7


def attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return softmax(q k^T / sqrt(d)) v (B, heads, L, d), and the log-sum-exp of the scores of each
    query (B, heads, L). All are float32 on a CPU.
    """
    if k.shape[2] < LARGE:
        found: tuple[Tensor, Tensor] = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        return found
    q = q * _scale(q)
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:3])
    for head in _heads_of(q):
        out[head], lse[head] = _attend(q[head], k[head], v[head])
    return out, lse.div_(LOG2_E)


def attention_backward(
    grad: Tensor, qkv: Sequence[Tensor], out: Tensor, lse: Tensor
) -> Sequence[Tensor]:
    """Return the gradients of q, k and v (B, heads, L or S, d) from that of the result."""
    q, k, v = qkv
    if k.shape[2] < LARGE:
        found: Sequence[Tensor] = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, False
        )
        return found
    q, lse, of_out = q * _scale(q), lse * LOG2_E, (grad * out).sum(dim=3)
    of_q, of_k, of_v = (torch.empty_like(part) for part in qkv)
    for head in _heads_of(q):
        parts = (part[head] for part in (grad, q, k, v, of_out, lse))
        of_q[head], of_k[head], of_v[head] = _attend_backward(*parts)
    return of_q.mul_(q.shape[3] ** -0.5), of_k.div_(LOG2_E), of_v


def _attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return one head's result (L, d), and log2 of the sum of exp2(q k^T) of each query (L,).

    q (L, d) is scaled. A block of rows sees all keys (S, d) at once.
    """
    q, k, v_turned = q.contiguous(), k.contiguous(), v.t().contiguous()
    out, (largest, total) = torch.empty_like(q), q.new_empty(2, len(q), 1)
    for block in _blocks(q, k):
        p = product(q[block], k)
        torch.amax(p, 1, keepdim=True, out=largest[block])
        p.sub_(largest[block]).exp2_()
        torch.sum(p, 1, keepdim=True, out=total[block])
        out[block] = product(p, v_turned)
        del p  # before the next one is there
    return out.div_(total), largest.add_(total.log2_())[:, 0]


def _attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, of_out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the gradients of one head's q (L, d), k and v (S, d) are made of.

    q is scaled (`_scale`). Of q it is the gradient times sqrt(d), of k that times log2(e).
    A block of the map's rows P is computed again from the log-sum-exp of each, (L,). With dP the
    gradient of P and D = `of_out` the products of result and gradient (L,), that of the scores is
    P (dP - D) (FlashAttention-2, arXiv 2307.08691, Algorithm 2).
    """
    grad, q, k, v = (part.contiguous() for part in (grad, q, k, v))
    k_turned, of_out, lse = k.t().contiguous(), of_out[:, None], lse[:, None]
    of_q = torch.empty_like(q)
    of_k, of_v = (
        torch.zeros_like(part.t(), memory_format=torch.contiguous_format) for part in (k, v)
    )
    for block in _blocks(q, k):
        some_q, some_grad = q[block], grad[block]
        # Turned: what is long lies along the product's columns, which is twice as fast.
        p = product(some_q, k).sub_(lse[block]).exp2_()
        of_v += product(some_grad.t().contiguous(), p.t())
        scores = product(some_grad, v).sub_(of_out[block]).mul_(p)
        of_k += product(some_q.t().contiguous(), scores.t())
        of_q[block] = product(scores, k_turned)
        del p, scores
    return of_q, of_k.t(), of_v.t()


def _scale(q: Tensor) -> float:
    """What makes exp2 of the products of q and k the exp of the scores."""
    return float(q.shape[3] ** -0.5 * LOG2_E)


def _heads_of(q: Tensor) -> Iterator[tuple[int, int]]:
    """Each image's each head."""
    return itertools.product(range(q.shape[0]), range(q.shape[1]))


def _blocks(q: Tensor, k: Tensor) -> Iterator[slice]:
    """Rows of one head's map, `BLOCK` cells at once."""
    rows = max(1, BLOCK // len(k))
    return (slice(start, start + rows) for start in range(0, len(q), rows))


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
