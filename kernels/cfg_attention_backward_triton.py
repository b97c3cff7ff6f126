"""The gradient of cross-attention by Triton (Dao 2023, arXiv 2307.08691, Algorithm 2):
probabilities are computed again from the saved log-sums, never stored.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
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
    widen,
)
from torch import Tensor

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

__all__ = ["cfg_attention_backward"]

PROGRAMS = 256
"""How many programs the keys' kernel should have at least: about two a multiprocessor."""


# Both kernels together: a row of B costs 14 heads L S d FLOP (five products, q k^T and do v^T in
# each kernel), against 10 if one kernel did both; that one would need atomic additions to dq, whose
# order, and so whose last bits, change from run to run. Memory: q, k, v, out, do read, dq, dk, dv
# written, the keys' side S long. SD v1 at 512 px, level 0 (S 77), float16: 1.4 GFLOP a row, 13 MB,
# a floor of 3 us of memory on an H200.
@triton.jit
def _cfg_attention_bwd_query_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    d_out_ptr,
    lse_ptr,
    delta_ptr,
    d_q_ptr,
    heads,
    queries,
    keys,
    scale,
    scale_log2,
    HEAD: tl.constexpr,
    BLOCK_HEAD: tl.constexpr,
    BLOCK_OWN: tl.constexpr,
    BLOCK_VISIT: tl.constexpr,
):
    """d_q of a tile of queries, and delta = sum_d out * d_out, which the keys' kernel reads."""
    index = tl.program_id(0) * BLOCK_OWN + tl.arange(0, BLOCK_OWN)
    row = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    stride = heads * HEAD
    own = row * queries * stride
    q_base = q_ptr + row * queries * stride
    k_base = k_ptr + row * keys * stride
    v_base = v_ptr + row * keys * stride
    line = (row * heads + head) * queries + index

    q = load_tile(q_base, index, queries, heads, head, HEAD, BLOCK_HEAD)
    d_out = load_tile(d_out_ptr + own, index, queries, heads, head, HEAD, BLOCK_HEAD)
    out = load_tile(out_ptr + own, index, queries, heads, head, HEAD, BLOCK_HEAD)
    delta = tl.sum(widen(out) * widen(d_out), 1)
    tl.store(delta_ptr + line, delta, mask=index < queries)
    # A query outside has probability 2^(0 - inf) = 0.
    lse = tl.load(lse_ptr + line, mask=index < queries, other=float("inf"))
    d_q = tl.full((BLOCK_OWN, BLOCK_HEAD), 0.0, tl.float32)
    for start in range(0, keys, BLOCK_VISIT):
        key = start + tl.arange(0, BLOCK_VISIT)
        k = load_tile(k_base, key, keys, heads, head, HEAD, BLOCK_HEAD)
        v = load_tile(v_base, key, keys, heads, head, HEAD, BLOCK_HEAD)
        p = tl.exp2(dot(q, tl.trans(k)) * scale_log2 - lse[:, None])
        p = tl.where((key < keys)[None, :], p, 0.0)
        d_score = p * (dot(d_out, tl.trans(v)) - delta[:, None])
        d_q = dot(narrow(d_score, k.dtype), k, d_q)
    store_tile(d_q_ptr + own, d_q * scale, index, queries, heads, head, HEAD, BLOCK_HEAD)


@triton.jit
def _cfg_attention_bwd_key_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    d_out_ptr,
    lse_ptr,
    delta_ptr,
    d_k_ptr,
    d_v_ptr,
    heads,
    queries,
    keys,
    share,
    scale,
    scale_log2,
    HEAD: tl.constexpr,
    BLOCK_HEAD: tl.constexpr,
    BLOCK_OWN: tl.constexpr,
    BLOCK_VISIT: tl.constexpr,
):
    """d_k and d_v of a tile of keys, summed over `share` queries: split program_id(2) of them."""
    key = tl.program_id(0) * BLOCK_OWN + tl.arange(0, BLOCK_OWN)
    batch = tl.num_programs(1) // heads
    row = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    stride = heads * HEAD
    q_base = q_ptr + row * queries * stride
    d_out_base = d_out_ptr + row * queries * stride
    k_base = k_ptr + row * keys * stride
    v_base = v_ptr + row * keys * stride
    lines = (row * heads + head) * queries

    k = load_tile(k_base, key, keys, heads, head, HEAD, BLOCK_HEAD)
    v = load_tile(v_base, key, keys, heads, head, HEAD, BLOCK_HEAD)
    d_k = tl.full((BLOCK_OWN, BLOCK_HEAD), 0.0, tl.float32)
    d_v = tl.full((BLOCK_OWN, BLOCK_HEAD), 0.0, tl.float32)
    first = tl.program_id(2) * share
    for start in range(first, tl.minimum(first + share, queries), BLOCK_VISIT):
        index = start + tl.arange(0, BLOCK_VISIT)
        q = load_tile(q_base, index, queries, heads, head, HEAD, BLOCK_HEAD)
        d_out = load_tile(d_out_base, index, queries, heads, head, HEAD, BLOCK_HEAD)
        lse = tl.load(lse_ptr + lines + index, mask=index < queries, other=float("inf"))
        delta = tl.load(delta_ptr + lines + index, mask=index < queries, other=0.0)
        p = tl.exp2(dot(k, tl.trans(q)) * scale_log2 - lse[None, :])
        d_v = dot(narrow(p, d_out.dtype), d_out, d_v)
        d_score = p * (dot(v, tl.trans(d_out)) - delta[None, :])
        d_k = dot(narrow(d_score, q.dtype), q, d_k)
    out = (tl.program_id(2) * batch + row) * keys * stride
    store_tile(d_k_ptr + out, d_k * scale, key, keys, heads, head, HEAD, BLOCK_HEAD)
    store_tile(d_v_ptr + out, d_v, key, keys, heads, head, HEAD, BLOCK_HEAD)


def query_tiles(dtype: torch.dtype, head: int) -> Tiles:
    """Tiles of d_q: queries owned, keys visited."""
    if dtype == torch.float32:
        return Tiles(32, 32, warps=4 if head <= 64 else 8, stages=1)
    if head <= 64:
        return Tiles(64, 64, warps=4, stages=2)
    if head <= 128:
        return Tiles(64, 64, warps=8, stages=2)
    return Tiles(32, 32, warps=8, stages=2)


def key_tiles(dtype: torch.dtype, head: int) -> Tiles:
    """Tiles of d_k and d_v: keys owned, queries visited."""
    if dtype == torch.float32:
        return Tiles(32, 32, warps=4 if head <= 64 else 8, stages=1)
    if head <= 128:
        return Tiles(64, 32, warps=8, stages=2)
    return Tiles(32, 32, warps=8, stages=2)


class _Saved(NamedTuple):
    """What both kernels read: tensors as (B, length, heads, d), lse and delta (B, heads, L)."""

    q: Tensor
    k: Tensor
    v: Tensor
    d_out: Tensor
    lse: Tensor
    delta: Tensor


@torch.library.custom_op("nti::cfg_attention_bwd", mutates_args=())
def cfg_attention_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor]:
    """d_q, and d_k and d_v (2, B, heads, S, d), from d_out (B, heads, L, d), the forward's inputs
    and its two outputs.

    q: (B, heads, L, d); k, v: (B, heads, S, d); lse: (B, heads, L), log2 of the softmax sums.
    """
    d_out, q, k, v, out = (token_major(x) for x in (d_out, q, k, v, out))
    saved = _Saved(q, k, v, d_out, lse, torch.empty_like(lse))
    with torch.cuda.device_of(q):
        d_q = _query_gradient(saved, out)
        d_kv = _key_gradients(saved)
    return d_q.transpose(1, 2), d_kv.transpose(2, 3)


@cfg_attention_backward.register_fake
def _(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor]:
    batch, heads, keys, head = k.shape
    return empty_heads(q), k.new_empty(2, batch, keys, heads, head).transpose(2, 3)


def _query_gradient(saved: _Saved, out: Tensor) -> Tensor:
    """d_q (B, L, heads, d); fills delta."""
    q, k, v, d_out, lse, delta = saved
    batch, queries, heads, head = q.shape
    d_q = torch.empty_like(q)
    size = query_tiles(q.dtype, head)
    _cfg_attention_bwd_query_kernel[(triton.cdiv(queries, size.own), batch * heads)](
        q,
        k,
        v,
        out,
        d_out,
        lse,
        delta,
        d_q,
        heads,
        queries,
        k.shape[1],
        head**-0.5,
        head**-0.5 * LOG2_E,
        HEAD=head,
        BLOCK_HEAD=padded(head),
        BLOCK_OWN=size.own,
        BLOCK_VISIT=size.visit,
        num_warps=size.warps,
        num_stages=size.stages,
    )
    return d_q


def _key_gradients(saved: _Saved) -> Tensor:
    """d_k and d_v (2, B, S, heads, d).

    A prompt's 77 keys make too few programs, so the queries are split among several, whose float32
    parts are added in a fixed order, of both by one launch.
    """
    q, k, v, d_out, lse, delta = saved
    batch, queries, heads, head = q.shape
    keys = k.shape[1]
    size = key_tiles(k.dtype, head)
    blocks = triton.cdiv(keys, size.own) * batch * heads
    visits = triton.cdiv(queries, size.visit)
    share = triton.cdiv(visits, min(visits, triton.cdiv(PROGRAMS, blocks)))
    splits = triton.cdiv(visits, share)
    d_kv = k.new_empty(2, splits, *k.shape, dtype=torch.float32 if splits > 1 else k.dtype)
    _cfg_attention_bwd_key_kernel[(triton.cdiv(keys, size.own), batch * heads, splits)](
        q,
        k,
        v,
        d_out,
        lse,
        delta,
        *d_kv,
        heads,
        queries,
        keys,
        share * size.visit,
        head**-0.5,
        head**-0.5 * LOG2_E,
        HEAD=head,
        BLOCK_HEAD=padded(head),
        BLOCK_OWN=size.own,
        BLOCK_VISIT=size.visit,
        num_warps=size.warps,
        num_stages=size.stages,
    )
    return d_kv.squeeze(1) if splits == 1 else d_kv.sum(1).to(k.dtype)
