"""Attention of a guidance batch with the Prompt-to-Prompt fold: the reference, on
scaled_dot_product_attention.

P2P replaces an edit row's probabilities P_e by P_s A + P_e diag(b), P_s those of its source row. As
the output is linear in the probabilities,

    (P_s A + P_e diag(b)) V_e = softmax(Q_s K_s^T / sqrt(d)) (A V_e) + softmax(Q_e K_e^T / sqrt(d))
    (b * V_e),

two attentions with small, premultiplied values: no map is ever in memory. A word's map, averaged
over heads, is the same product with an indicator column in the place of V_e.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["cfg_attention", "materialised", "word_maps"]


def cfg_attention(
    q: Tensor, k: Tensor, v: Tensor, source_rows: Tensor, source_mix: Tensor, own_mix: Tensor
) -> Tensor:
    """Cross-attention of B rows whose last E rows are edited.

    Args:
        q: (B, heads, L, d) queries.
        k: (B, heads, S, d) keys.
        v: (B, heads, S, d) values.
        source_rows: (E,) int64, the row of each edit's source.
        source_mix: A (E, S, S), rows source tokens, columns the edit's.
        own_mix: b (E, S).

    Returns:
        (B, heads, L, d) in q's dtype.

    """
    first = q.shape[0] - source_rows.shape[0]
    a, b = source_mix.to(v.dtype), own_mix.to(v.dtype)
    edited = v[first:]
    own = torch.cat([v[:first], b[:, None, :, None] * edited])
    out = F.scaled_dot_product_attention(q, k, own)
    from_source = F.scaled_dot_product_attention(
        q[source_rows], k[source_rows], torch.matmul(a[:, None], edited)
    )
    return torch.cat([out[:first], out[first:] + from_source])


def word_maps(
    q: Tensor, k: Tensor, words: Tensor, source_rows: Tensor, source_mix: Tensor, own_mix: Tensor
) -> Tensor:
    """Attention mass on groups of tokens, after the edit, averaged over heads.

    Args:
        q: (B, heads, L, d) queries.
        k: (B, heads, S, d) keys.
        words: (R, S, W) indicator columns of the last R rows, R >= E.
        source_rows: (E,) int64, the row of each edit's source.
        source_mix: A (E, S, S).
        own_mix: b (E, S).

    Returns:
        (R, L, W), float64 for float64 inputs, float32 for all others: the caller sums them up.

    """
    heads, size = q.shape[1], q.shape[-1]
    width = words.shape[-1]
    first = q.shape[0] - words.shape[0]
    maps = []
    for start in range(0, width, size):
        # SDPA leaves its fused kernels when the value's size differs from the query's, so the
        # columns are padded.
        columns = words[..., start : start + size].to(q.dtype)
        columns = F.pad(columns, (0, size - columns.shape[-1]))
        columns = columns[:, None].expand(-1, heads, -1, -1)
        nothing = columns.new_zeros(first, *columns.shape[1:])
        mixed = cfg_attention(q, k, torch.cat([nothing, columns]), source_rows, source_mix, own_mix)
        exact = torch.promote_types(q.dtype, torch.float32)
        maps.append(mixed[first:].to(exact).mean(dim=1))
    return torch.cat(maps, dim=-1)[..., :width]


def materialised(
    q: Tensor, k: Tensor, source_rows: Tensor, source_mix: Tensor, own_mix: Tensor
) -> Tensor:
    """Return the edited maps (B, heads, L, S) themselves: for looking at and for tests."""
    probabilities = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)
    first = q.shape[0] - source_rows.shape[0]
    a, b = source_mix.to(q.dtype), own_mix.to(q.dtype)
    edited = probabilities[source_rows] @ a[:, None] + probabilities[first:] * b[:, None, None]
    return torch.cat([probabilities[:first], edited])
