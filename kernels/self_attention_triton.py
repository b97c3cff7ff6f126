"""Self-attention by Triton: online softmax over tiles of keys (Dao 2023, arXiv 2307.08691,
Algorithm 1), with the row of the queries and keys read from a tensor.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from nti.kernels.attention_backward_triton import attention_backward
from nti.kernels.backend import check_inputs
from nti.kernels.tiles import (
    LOG2_E,
    Tiles,
    dot,
    empty_heads,
    load_tile,
    narrow,
    padded,
    store_tile,
    token_major,
)
from torch import Tensor

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

__all__ = ["self_attention", "self_attention_forward", "tiles"]


# A row of B costs 4 heads L^2 d FLOP and moves 4 heads L d elements once (lse: 4 bytes a query).
# SD v1 at 512 px, level 0 (8 heads, L 4096, d 40), float16: 21.5 GFLOP, 34.4 with d padded to 64,
# 10.5 MB, 134 million exponentials. Floor on an H100 SXM (990 TFLOP/s, 3.35 TB/s, 16 exponentials
# a clock and multiprocessor, 1.7 GHz): 35 us of products, 37 us of exponentials, 3 us of memory.
#
# Edits that share a source could share its probabilities: one program would hold E accumulators,
# and save (E - 1) / E of the products q k^T and of the exponentials. That costs registers that a
# wide head does not have, and whether it pays has to be measured on a device first: left out.
@triton.jit
def _self_attention_fwd_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    rows_ptr,
    out_ptr,
    lse_ptr,
    heads,
    length,
    scale_log2,
    ROWS: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCK_HEAD: tl.constexpr,
    BLOCK_OWN: tl.constexpr,
    BLOCK_VISIT: tl.constexpr,
):
    # Programs of one head are neighbours, so that its keys and values stay in the L2 cache.
    index = tl.program_id(0) * BLOCK_OWN + tl.arange(0, BLOCK_OWN)
    row = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    stride = heads * HEAD
    source = row
    if ROWS:
        source = tl.load(rows_ptr + row)
    shared = source * length * stride
    own = row * length * stride

    q = load_tile(q_ptr + shared, index, length, heads, head, HEAD, BLOCK_HEAD)
    peak = tl.full((BLOCK_OWN,), float("-inf"), tl.float32)
    total = tl.full((BLOCK_OWN,), 0.0, tl.float32)
    out = tl.full((BLOCK_OWN, BLOCK_HEAD), 0.0, tl.float32)
    for start in range(0, length, BLOCK_VISIT):
        key = start + tl.arange(0, BLOCK_VISIT)
        k = load_tile(k_ptr + shared, key, length, heads, head, HEAD, BLOCK_HEAD)
        v = load_tile(v_ptr + own, key, length, heads, head, HEAD, BLOCK_HEAD)
        score = dot(q, tl.trans(k)) * scale_log2
        score = tl.where((key < length)[None, :], score, float("-inf"))
        higher = tl.maximum(peak, tl.max(score, 1))
        shrink = tl.exp2(peak - higher)
        p = tl.exp2(score - higher[:, None])
        total = total * shrink + tl.sum(p, 1)
        out = dot(narrow(p, v.dtype), v, out * shrink[:, None])
        peak = higher

    store_tile(out_ptr + own, out / total[:, None], index, length, heads, head, HEAD, BLOCK_HEAD)
    lse = peak + tl.log2(total)
    tl.store(lse_ptr + (row * heads + head) * length + index, lse, mask=index < length)


def tiles(dtype: torch.dtype, head: int) -> Tiles:
    """Tiles of the forward: queries owned, keys visited. See the table in docs/kernels.md."""
    if dtype == torch.float32:
        return Tiles(32, 32, warps=4 if head <= 64 else 8, stages=1)
    if head <= 128:
        return Tiles(128, 64 if head <= 64 else 32, warps=8, stages=2)
    return Tiles(64, 32, warps=8, stages=2)


@torch.library.custom_op("nti::self_attention_fwd", mutates_args=())
def self_attention_forward(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Attention (B, heads, L, d), and log2 of each query's softmax sum (B, heads, L) in float32."""
    batch, heads, length, head = q.shape
    q, k, v = token_major(q), token_major(k), token_major(v)
    out = empty_heads(q.transpose(1, 2))
    lse = q.new_empty(batch, heads, length, dtype=torch.float32)
    size = tiles(q.dtype, head)
    with torch.cuda.device_of(q):
        _self_attention_fwd_kernel[(triton.cdiv(length, size.own), batch * heads)](
            q,
            k,
            v,
            rows,
            out,
            lse,
            heads,
            length,
            head**-0.5 * LOG2_E,
            ROWS=rows is not None,
            HEAD=head,
            BLOCK_HEAD=padded(head),
            BLOCK_OWN=size.own,
            BLOCK_VISIT=size.visit,
            num_warps=size.warps,
            num_stages=size.stages,
        )
    return out, lse


@self_attention_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    return empty_heads(q), q.new_empty(q.shape[:-1], dtype=torch.float32)


class _SelfAttention(torch.autograd.Function):
    """The op and its gradient. Wrapped around the op, not registered with it: `torch.func` refuses
    registered ones.
    """

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        out, lse = self_attention_forward(q, k, v, rows)
        return out, lse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        q, k, v, rows = inputs
        out, lse = output
        ctx.mark_non_differentiable(lse)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q, k, v, rows, out, lse)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, rows, out, lse = ctx.saved_tensors
        return *attention_backward(grads[0], q, k, v, out, lse, rows), None


def self_attention(q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None) -> Tensor:
    """Like `nti.kernels.self_attention.self_attention`, by Triton."""
    check_inputs(q, k, v)
    rows = None if rows is None else rows.contiguous()
    out: Tensor = _SelfAttention.apply(q, k, v, rows)[0]
    return out
