"""Cross-attention of a guidance batch with the Prompt-to-Prompt fold and the words' maps.

P2P replaces an edit row's probabilities P_e by P_s A + P_e diag(b), P_s those of its source row. As
the output is linear in the probabilities,

    (P_s A + P_e diag(b)) V_e = softmax(Q_s K_s^T / sqrt(d)) (A V_e) + softmax(Q_e K_e^T / sqrt(d))
    (b * V_e),

two attentions with small, premultiplied values: no map is ever in memory. A word's map, averaged
over heads, is the same product with an indicator column in the place of V_e. That is the reference,
on scaled_dot_product_attention; the Triton kernel folds the probabilities themselves, a tile at a
time. Without a fold and words it is scaled_dot_product_attention everywhere.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from nti.kernels.backend import provides
from torch import Tensor

__all__ = ["Fold", "cfg_attention", "materialised", "reference", "word_maps"]


class Fold(NamedTuple):
    """One step's edit of the probabilities of the last E rows."""

    source_rows: Tensor
    """(E,) int64, the row of each edit's source."""
    source_mix: Tensor
    """A (E, S, S), rows source tokens, columns the edit's."""
    own_mix: Tensor
    """b (E, S)."""


def cfg_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    fold: Fold | None = None,
    words: Tensor | None = None,
    *,
    backend: str = "reference",
) -> tuple[Tensor, Tensor | None]:
    """Cross-attention of B rows, the last E of them edited, and the words' maps after the edit.

    Args:
        q: (B, heads, L, d) queries.
        k: (B, heads, S, d) keys.
        v: (B, heads, S, d) values.
        fold: the edit, or None.
        words: (R, S, W) indicator columns of the last R rows, R >= E, or None.
        backend: `reference` or `triton`; with a fold or words the latter takes float16, bfloat16
            and float32, heads up to 256 wide and up to 128 keys.

    Returns:
        (B, heads, L, d) in q's dtype, and the attention mass on each column's tokens averaged over
        heads, (R, L, W), or None without words. The maps are float64 for float64 inputs, float32
        for all others: the caller sums them up. The first is differentiable in q, k and v; by
        Triton only without a fold and words.

    Raises:
        ValueError: an unknown backend, a fold or words of another shape, inputs that the Triton
        kernel does not take, or (at the backward pass) a gradient that it does not compute.

    """
    by_triton = provides(backend, "cfg_attention")
    if fold is None and words is None:
        return reference(q, k, v), None
    _check_edit(q.shape[0], k.shape[-2], fold, words)
    if by_triton:
        from nti.kernels import cfg_attention_triton

        return cfg_attention_triton.cfg_attention(q, k, v, fold, words)
    maps = None if words is None else word_maps(q, k, words, fold)
    return reference(q, k, v, fold), maps


def _check_edit(batch: int, keys: int, fold: Fold | None, words: Tensor | None) -> None:
    """Raise ValueError unless the shapes fit: the kernel would read whatever memory comes next."""
    edits = 0 if fold is None else fold.source_rows.numel()
    if fold is not None:
        got = [tuple(x.shape) for x in fold]
        if edits > batch or got != [(edits,), (edits, keys, keys), (edits, keys)]:
            raise ValueError(
                f"fold: got source_rows, source_mix, own_mix of {', '.join(map(str, got))},"
                f" expected (E,), (E, {keys}, {keys}), (E, {keys}) with E at most {batch}"
            )
    if words is not None and (
        words.ndim != 3 or words.shape[1] != keys or not edits <= words.shape[0] <= batch
    ):
        raise ValueError(
            f"words: got {tuple(words.shape)}, expected (R, {keys}, W) with R from {edits} to"
            f" {batch}"
        )


def reference(q: Tensor, k: Tensor, v: Tensor, fold: Fold | None = None) -> Tensor:
    """The attention alone, on scaled_dot_product_attention."""
    if fold is None:
        return F.scaled_dot_product_attention(q, k, v)
    source_rows, source_mix, own_mix = fold
    first = q.shape[0] - source_rows.shape[0]
    a, b = source_mix.to(v.dtype), own_mix.to(v.dtype)
    edited = v[first:]
    own = torch.cat([v[:first], b[:, None, :, None] * edited])
    out = F.scaled_dot_product_attention(q, k, own)
    from_source = F.scaled_dot_product_attention(
        q[source_rows], k[source_rows], torch.matmul(a[:, None], edited)
    )
    return torch.cat([out[:first], out[first:] + from_source])


def word_maps(q: Tensor, k: Tensor, words: Tensor, fold: Fold | None = None) -> Tensor:
    """The maps alone: as many attentions as words (R, S, W) fill heads with."""
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
        mixed = reference(q, k, torch.cat([nothing, columns]), fold)
        exact = torch.promote_types(q.dtype, torch.float32)
        maps.append(mixed[first:].to(exact).mean(dim=1))
    return torch.cat(maps, dim=-1)[..., :width]


def materialised(q: Tensor, k: Tensor, fold: Fold | None = None) -> Tensor:
    """Return the edited maps (B, heads, L, S) themselves: for looking at and for tests."""
    probabilities = torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2), dim=-1)
    if fold is None:
        return probabilities
    first = q.shape[0] - fold.source_rows.shape[0]
    a, b = fold.source_mix.to(q.dtype), fold.own_mix.to(q.dtype)
    edited = probabilities[fold.source_rows] @ a[:, None] + probabilities[first:] * b[:, None, None]
    return torch.cat([probabilities[:first], edited])
