"""Cross-attention of a guidance batch by Triton: one launch for all rows, the fold and the maps.

A prompt's tokens fit into one tile, so a program holds the whole probabilities of its queries.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from nti.kernels.backend import check_inputs
from nti.kernels.tiles import (
    LOG2_E,
    dot,
    empty_heads,
    load_tile,
    narrow,
    padded,
    parts_of,
    store_tile,
    token_major,
    widen,
)
from torch import Tensor

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

__all__ = ["cfg_attention", "cfg_attention_forward"]


@triton.jit
def _probabilities(
    q_base,
    k_base,
    index,
    queries,
    key,
    keys,
    heads,
    head,
    scale_log2,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """One head's softmax (queries, tokens)."""
    score = tl.full((index.shape[0], key.shape[0]), 0.0, tl.float32)
    for part in tl.static_range(PARTS):
        place = head * PARTS + part
        q = load_tile(q_base, index, queries, heads * PARTS, place, WIDTH, BLOCK_WIDTH)
        k = load_tile(k_base, key, keys, heads * PARTS, place, WIDTH, BLOCK_WIDTH)
        score = dot(q, tl.trans(k), score)
    score = tl.where((key < keys)[None, :], score * scale_log2, float("-inf"))
    peak = tl.max(score, 1)
    p = tl.exp2(score - peak[:, None])
    return p / tl.sum(p, 1)[:, None]


# A row costs 4 heads L S d FLOP, an edit 2 heads L S (S + d) more: its source's scores again, and
# P_s A. (A V_e first would be fewer for d < S, but the words' maps need the probabilities.) q is
# read and the output written once, 2 heads L d elements; k, v and A are small. SD v1 at 512 px,
# level 0 (8 heads, L 4096, d 40), float16: 0.40 GFLOP a row, an edit 0.59 more (1.1 and 1.6 with
# the tiles padded), 5.4 MB. Floor on an H200 (990 TFLOP/s, 4.8 TB/s): 1.1 us a row, by memory.
# An edit's source rows come from the L2 cache, where the source's own programs put them.
#
# A word's map is averaged over heads after the launch, in one order. Atomic additions would need no
# memory for each head's map, but their last bits would change from run to run, and a mask's
# threshold must not depend on that.
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
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    index = tl.program_id(0) * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    key = tl.arange(0, BLOCK_KEYS)
    row = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    stride = heads * PARTS * WIDTH

    own = row * queries * stride
    p = _probabilities(
        q_ptr + own, k_ptr + row * keys * stride, index, queries, key, keys, heads, head,
        scale_log2, PARTS, WIDTH, BLOCK_WIDTH,
    )  # fmt: skip
    if EDITS:  # noqa: SIM102 (known when compiling, the row is not)
        if row >= first_edit:
            edit = row - first_edit
            b = tl.load(own_mix_ptr + edit * keys + key, mask=key < keys, other=0.0)
            source = tl.load(source_rows_ptr + edit)
            p_source = _probabilities(
                q_ptr + source * queries * stride, k_ptr + source * keys * stride, index, queries,
                key, keys, heads, head, scale_log2, PARTS, WIDTH, BLOCK_WIDTH,
            )  # fmt: skip
            mix = source_mix_ptr + (edit * keys + key[:, None]) * keys + key[None, :]
            mix = tl.load(mix, mask=(key < keys)[:, None] & (key < keys)[None, :], other=0.0)
            p = dot(narrow(p_source, mix.dtype), mix, p * widen(b)[None, :])

    p = narrow(p, q_ptr.dtype.element_ty)
    if WORDS > 0:  # noqa: SIM102
        if row >= first_word:
            word_row = row - first_word
            words = load_tile(words_ptr + word_row * keys * WORDS, key, keys, 1, 0, WORDS, WORDS)
            maps = maps_ptr + (word_row * heads + head) * queries * WORDS
            store_tile(maps, dot(p, words), index, queries, 1, 0, WORDS, WORDS)
    for part in tl.static_range(PARTS):
        place = head * PARTS + part
        v = load_tile(
            v_ptr + row * keys * stride, key, keys, heads * PARTS, place, WIDTH, BLOCK_WIDTH
        )
        store_tile(
            out_ptr + own, dot(p, v), index, queries, heads * PARTS, place, WIDTH, BLOCK_WIDTH
        )


def query_tile(dtype: torch.dtype) -> int:
    """How many queries a program holds. See the table in docs/kernels.md."""
    return 16 if dtype == torch.float32 else 32


@torch.library.custom_op("nti::cfg_attention_fwd", mutates_args=())
def cfg_attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source_rows: Tensor | None,
    source_mix: Tensor | None,
    own_mix: Tensor | None,
    words: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Attention (B, heads, L, d), and maps (R, L, W) in float32, (0, L, 0) without words."""
    batch, heads, queries, head = q.shape
    keys = k.shape[2]
    q, k, v = token_major(q), token_major(k), token_major(v)
    out = empty_heads(q.transpose(1, 2))
    edits = 0
    if source_rows is not None and source_mix is not None and own_mix is not None:
        edits = source_rows.shape[0]
        source_rows = source_rows.contiguous()
        source_mix, own_mix = (x.to(q.dtype).contiguous() for x in (source_mix, own_mix))
    described, columns, width = 0, 0, 0
    if words is not None:
        described, columns = words.shape[0], words.shape[2]
        width = padded(columns)
        words = F.pad(words.to(q.dtype), (0, width - columns)).contiguous()
    maps = q.new_empty(described, heads, queries, width, dtype=torch.float32)
    parts = parts_of(q.dtype, head)
    size = query_tile(q.dtype)
    with torch.cuda.device_of(q):
        _cfg_attention_fwd_kernel[(triton.cdiv(queries, size), batch * heads)](
            q,
            k,
            v,
            source_rows,
            source_mix,
            own_mix,
            words,
            out,
            maps,
            heads,
            queries,
            keys,
            batch - edits,
            batch - described,
            head**-0.5 * LOG2_E,
            EDITS=edits > 0,
            WORDS=width,
            PARTS=parts,
            WIDTH=head // parts,
            BLOCK_WIDTH=padded(head // parts),
            BLOCK_QUERIES=size,
            BLOCK_KEYS=padded(keys),
            num_warps=8 if edits or head > 64 else 4,
            num_stages=1,
        )
    if not described:
        return out, maps.new_empty(0, queries, 0)
    return out, maps[..., :columns].mean(dim=1)


@cfg_attention_forward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source_rows: Tensor | None,
    source_mix: Tensor | None,
    own_mix: Tensor | None,
    words: Tensor | None,
) -> tuple[Tensor, Tensor]:
    rows, columns = (0, 0) if words is None else (words.shape[0], words.shape[2])
    return empty_heads(q), q.new_empty(rows, q.shape[2], columns, dtype=torch.float32)


def _refuse(ctx: object, *grads: Tensor) -> None:
    """Null-text optimization runs without control, and nothing else differentiates."""
    raise ValueError(
        "cfg_attention: got an edited or described batch to differentiate, expected neither with"
        " backend='triton': use backend='reference'"
    )


cfg_attention_forward.register_autograd(_refuse)


def cfg_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    fold: tuple[Tensor, Tensor, Tensor] | None,
    words: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Like `nti.kernels.cfg_attention.cfg_attention`, by Triton, without a gradient."""
    check_inputs(q, k, v)
    out, maps = cfg_attention_forward(q, k, v, *(fold or (None, None, None)), words)
    return out, maps if words is not None else None
