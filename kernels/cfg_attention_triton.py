"""Cross-attention of a guidance batch by Triton: one launch for all rows, the fold and the maps."""

from typing import Any

import torch
import torch.nn.functional as F
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
    widen,
)
from torch import Tensor

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

__all__ = ["cfg_attention", "cfg_attention_forward", "tiles"]


@triton.jit
def _scores(q, k, key, keys, scale_log2):
    """Scaled q k^T in log2 units, (queries, tokens); -inf for tokens outside."""
    return tl.where((key < keys)[None, :], dot(q, tl.trans(k)) * scale_log2, float("-inf"))


@triton.jit
def _log_sum(
    q,
    k_base,
    keys,
    heads,
    head,
    scale_log2,
    HEAD: tl.constexpr,
    BLOCK_HEAD: tl.constexpr,
    BLOCK_VISIT: tl.constexpr,
):
    """log2 of each query's softmax sum."""
    peak = tl.full((q.shape[0],), float("-inf"), tl.float32)
    total = tl.full((q.shape[0],), 0.0, tl.float32)
    for first in range(0, keys, BLOCK_VISIT):
        key = first + tl.arange(0, BLOCK_VISIT)
        k = load_tile(k_base, key, keys, heads, head, HEAD, BLOCK_HEAD)
        score = _scores(q, k, key, keys, scale_log2)
        higher = tl.maximum(peak, tl.max(score, 1))
        total = total * tl.exp2(peak - higher) + tl.sum(tl.exp2(score - higher[:, None]), 1)
        peak = higher
    return peak + tl.log2(total)


# A row costs 4 heads L S d FLOP, an edit 2 heads L S (S + d) more (its source's scores again, and
# P_s A; A V_e first would be fewer for d < S, but the words' maps need the probabilities). q is
# read and the output written once, 2 heads L d elements; k, v and A are small. SD v1 at 512 px,
# level 0 (8 heads, L 4096, d 40), float16: 0.40 GFLOP a row, an edit 0.59 more (0.67 and 1.6 with
# the tiles padded), 5.4 MB. Floor on an H100 SXM (990 TFLOP/s, 3.35 TB/s): 1.6 us a row, by memory.
# An edit's source rows come from the L2 cache, where the source's own programs put them.
#
# The words' maps are one more head: its values are the words' columns, and it sums over all heads,
# in one program and one order. A program a head with atomic additions would be faster, but its last
# bits would change from run to run, and a mask's threshold must not depend on that. It computes the
# scores a second time; few sites ask for maps, at coarse levels.
@triton.jit
def _cfg_attention_fwd_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    source_rows_ptr,
    source_mix_ptr,
    own_mix_ptr,
    words_ptr,
    out_ptr,
    lse_ptr,
    maps_ptr,
    heads,
    queries,
    keys,
    first_edit,
    first_word,
    scale_log2,
    EDITS: tl.constexpr,
    WORDS: tl.constexpr,
    PARTS: tl.constexpr,
    HEAD: tl.constexpr,
    BLOCK_HEAD: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    BLOCK_OWN: tl.constexpr,
    BLOCK_VISIT: tl.constexpr,
):
    index = tl.program_id(0) * BLOCK_OWN + tl.arange(0, BLOCK_OWN)
    row = tl.program_id(1).to(tl.int64)
    own = row * queries * heads * HEAD
    k_base = k_ptr + row * keys * heads * HEAD
    edit = row - first_edit
    # A wide head's values are taken in parts, as if they were narrower heads.
    first_head = tl.program_id(2) // PARTS
    last_head = first_head + 1
    values = v_ptr + row * keys * heads * HEAD
    value_heads, value_head, width = heads * PARTS, tl.program_id(2), HEAD // PARTS
    if WORDS > 0:
        word_row = row - first_word
        if first_head == heads:
            values = words_ptr + word_row * keys * WORDS
            value_heads, value_head, width = 1, 0, WORDS
            first_head = 0
            # A row before the first with words does nothing.
            last_head = tl.where(word_row >= 0, heads, 0)

    out = tl.full((BLOCK_OWN, BLOCK_VALUE), 0.0, tl.float32)
    for head in range(first_head, last_head):
        q = load_tile(q_ptr + own, index, queries, heads, head, HEAD, BLOCK_HEAD)
        lse = _log_sum(q, k_base, keys, heads, head, scale_log2, HEAD, BLOCK_HEAD, BLOCK_VISIT)
        tl.store(lse_ptr + (row * heads + head) * queries + index, lse, mask=index < queries)
        for first in range(0, keys, BLOCK_VISIT):
            key = first + tl.arange(0, BLOCK_VISIT)
            k = load_tile(k_base, key, keys, heads, head, HEAD, BLOCK_HEAD)
            p = tl.exp2(_scores(q, k, key, keys, scale_log2) - lse[:, None])
            if EDITS:
                mixed = key < tl.where(edit >= 0, keys, 0)
                b = tl.load(own_mix_ptr + edit * keys + key, mask=mixed, other=1.0)
                p = p * widen(b)[None, :]
            v = load_tile(values, key, keys, value_heads, value_head, width, BLOCK_VALUE)
            out = dot(narrow(p, v.dtype), v, out)
        if EDITS:  # noqa: SIM102 (known when compiling, the row is not)
            if edit >= 0:
                # The source's part comes second, so that only one row's queries are held at a time.
                source = tl.load(source_rows_ptr + edit)
                q_base = q_ptr + source * queries * heads * HEAD
                k_source = k_ptr + source * keys * heads * HEAD
                q = load_tile(q_base, index, queries, heads, head, HEAD, BLOCK_HEAD)
                lse = _log_sum(
                    q, k_source, keys, heads, head, scale_log2, HEAD, BLOCK_HEAD, BLOCK_VISIT
                )
                for first in range(0, keys, BLOCK_VISIT):
                    token = first + tl.arange(0, BLOCK_VISIT)
                    k = load_tile(k_source, token, keys, heads, head, HEAD, BLOCK_HEAD)
                    score = _scores(q, k, token, keys, scale_log2)
                    p_source = narrow(tl.exp2(score - lse[:, None]), q.dtype)
                    for start in range(0, keys, BLOCK_VISIT):
                        key = start + tl.arange(0, BLOCK_VISIT)
                        inside = (token < keys)[:, None] & (key < keys)[None, :]
                        mix = source_mix_ptr + (edit * keys + token[:, None]) * keys + key[None, :]
                        p = dot(p_source, tl.load(mix, mask=inside, other=0.0))
                        v = load_tile(
                            values, key, keys, value_heads, value_head, width, BLOCK_VALUE
                        )
                        out = dot(narrow(p, v.dtype), v, out)

    if WORDS > 0:
        if tl.program_id(2) == heads * PARTS:
            kept = tl.where(word_row >= 0, queries, 0)
            maps = maps_ptr + word_row * queries * WORDS
            store_tile(maps, out / heads, index, kept, 1, 0, WORDS, BLOCK_VALUE)
        else:
            store_tile(
                out_ptr + own, out, index, queries, value_heads, value_head, width, BLOCK_VALUE
            )
    else:
        store_tile(out_ptr + own, out, index, queries, value_heads, value_head, width, BLOCK_VALUE)


def tiles(dtype: torch.dtype, head: int) -> Tiles:
    """Tiles: queries owned, tokens visited. See the table in docs/kernels.md."""
    if dtype == torch.float32:
        return Tiles(32, 32, warps=4, stages=1)
    if head <= 128:
        return Tiles(64, 32, warps=4, stages=1)
    return Tiles(64, 16, warps=8, stages=1)


def value_parts(head: int, most: int) -> int:
    """Return into how many equal parts a head's values are cut so that none is wider than `most`.

    A wide head's sums fill the registers: each part has its own program, which repeats the scores.
    """
    return next(n for n in range(1, head + 1) if head % n == 0 and head // n <= most)


@torch.library.custom_op("nti::cfg_attention_fwd", mutates_args=())
def cfg_attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source_rows: Tensor | None,
    source_mix: Tensor | None,
    own_mix: Tensor | None,
    words: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention (B, heads, L, d), log2 of the softmax sums before the edit (B, heads, L), and maps.

    The maps (R, L, W) are float32, and (0, L, 0) without words. The sums are float32.
    """
    batch, heads, queries, head = q.shape
    q, k, v = token_major(q), token_major(k), token_major(v)
    out = empty_heads(q.transpose(1, 2))
    lse = q.new_empty(batch, heads, queries, dtype=torch.float32)
    maps, columns = _empty_maps(q, queries, words)
    size = tiles(q.dtype, head)
    parts = value_parts(head, 128 if words is None else 64)
    edits = 0
    if source_rows is not None and source_mix is not None and own_mix is not None:
        edits = source_rows.shape[0]
        source_rows = source_rows.contiguous()
        source_mix, own_mix = (x.to(q.dtype).contiguous() for x in (source_mix, own_mix))
    if words is not None:
        words = F.pad(words.to(q.dtype), (0, maps.shape[-1] - columns)).contiguous()
    with torch.cuda.device_of(q):
        _cfg_attention_fwd_kernel[
            (triton.cdiv(queries, size.own), batch, heads * parts + (words is not None))
        ](
            q,
            k,
            v,
            source_rows,
            source_mix,
            own_mix,
            words,
            out,
            lse,
            maps,
            heads,
            queries,
            k.shape[1],
            batch - edits,
            batch - maps.shape[0],
            head**-0.5 * LOG2_E,
            EDITS=edits > 0,
            WORDS=maps.shape[-1],
            PARTS=parts,
            HEAD=head,
            BLOCK_HEAD=padded(head),
            BLOCK_VALUE=padded(max(head // parts, maps.shape[-1])),
            BLOCK_OWN=size.own,
            BLOCK_VISIT=size.visit,
            num_warps=size.warps,
            num_stages=size.stages,
        )
    return out, lse, maps[..., :columns]


@cfg_attention_forward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source_rows: Tensor | None,
    source_mix: Tensor | None,
    own_mix: Tensor | None,
    words: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    lse = q.new_empty(q.shape[:-1], dtype=torch.float32)
    maps, columns = _empty_maps(q, q.shape[2], words)
    return empty_heads(q), lse, maps[..., :columns]


def _empty_maps(q: Tensor, queries: int, words: Tensor | None) -> tuple[Tensor, int]:
    """Memory for the maps, with columns in multiples of 16, and how many of them are asked for.

    Rows of 16 elements are aligned, as the values' are, and so loaded 16 bytes at a time.
    """
    rows, columns = (0, 0) if words is None else (words.shape[0], words.shape[2])
    return q.new_empty(rows, queries, (columns + 15) // 16 * 16, dtype=torch.float32), columns


class _CfgAttention(torch.autograd.Function):
    """The op and, without a fold, its gradient. Wrapped around the op, not registered with it:
    `torch.func` refuses registered ones.
    """

    @staticmethod
    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        source_rows: Tensor | None,
        source_mix: Tensor | None,
        own_mix: Tensor | None,
        words: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        result: tuple[Tensor, Tensor, Tensor] = cfg_attention_forward(
            q, k, v, source_rows, source_mix, own_mix, words
        )
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        q, k, v, source_rows, *_ = inputs
        out, lse, maps = output
        ctx.mark_non_differentiable(lse, maps)
        ctx.set_materialize_grads(False)
        ctx.edited = source_rows is not None
        ctx.save_for_backward(q, k, v, out, lse)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.edited:
            # Null-text optimization runs without control; nothing else needs a gradient.
            raise ValueError(
                "cfg_attention: got an edited batch to differentiate, expected none with"
                " backend='triton': use backend='reference'"
            )
        return *attention_backward(grads[0], *ctx.saved_tensors, None), None, None, None, None


def cfg_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    fold: tuple[Tensor, Tensor, Tensor] | None,
    words: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Like `nti.kernels.cfg_attention.cfg_attention`, by Triton."""
    check_inputs(q, k, v)
    out, _, maps = _CfgAttention.apply(q, k, v, *(fold or (None, None, None)), words)
    return out, maps if words is not None else None
