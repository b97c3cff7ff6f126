"""Attention among positions, in which a row may use another row's queries and keys.

Prompt-to-Prompt injects the source's self-attention into an edit: softmax(Q_s K_s^T / sqrt(d)) V_e.
The row to take Q and K from is data, so one graph serves the steps inside and outside the window.
"""

import torch.nn.functional as F
from nti.kernels.backend import provides
from torch import Tensor

__all__ = ["reference", "self_attention"]


def self_attention(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None = None, *, backend: str = "reference"
) -> Tensor:
    """softmax(q[rows] k[rows]^T / sqrt(d)) v.

    Args:
        q: (B, heads, L, d) queries.
        k: (B, heads, L, d) keys.
        v: (B, heads, L, d) values.
        rows: (B,) int64, the row whose queries and keys each row uses; None: its own.
        backend: `reference` or `triton`; the latter takes float16, bfloat16 and float32.

    Returns:
        (B, heads, L, d) in q's dtype. Differentiable in q, k and v.

    Raises:
        ValueError: an unknown backend, rows of another shape, or inputs that the Triton kernels do
        not take.

    """
    if rows is not None and rows.shape != q.shape[:1]:
        raise ValueError(
            f"rows: got {tuple(rows.shape)}, expected ({q.shape[0]},), one for each row of q"
        )
    if provides(backend, "self_attention"):
        from nti.kernels import self_attention_triton

        return self_attention_triton.self_attention(q, k, v, rows)
    return reference(q, k, v, rows)


def reference(q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None = None) -> Tensor:
    """The same on scaled_dot_product_attention."""
    if rows is not None:
        q, k = q[rows], k[rows]
    return F.scaled_dot_product_attention(q, k, v)
