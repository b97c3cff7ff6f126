"""Attention among positions, in which a row may use another row's queries and keys.

Prompt-to-Prompt injects the source's self-attention into an edit: softmax(Q_s K_s^T / sqrt(d)) V_e.
The row to take Q and K from is data, so one graph serves the steps inside and outside the window.
PyTorch computes it on every device: a kernel by Triton took longer (docs/kernels.md).
"""

import torch.nn.functional as F
from torch import Tensor

__all__ = ["self_attention"]


def self_attention(q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None = None) -> Tensor:
    """softmax(q[rows] k[rows]^T / sqrt(d)) v.

    Args:
        q: (B, heads, L, d) queries.
        k: (B, heads, L, d) keys.
        v: (B, heads, L, d) values.
        rows: (B,) int64, the row whose queries and keys each row uses; None: its own.

    Returns:
        (B, heads, L, d) in q's dtype. Differentiable in q, k and v.

    Raises:
        ValueError: rows of another shape.

    """
    if rows is None:
        return F.scaled_dot_product_attention(q, k, v)
    if rows.shape != q.shape[:1]:
        raise ValueError(
            f"rows: got {tuple(rows.shape)}, expected ({q.shape[0]},), one for each row of q"
        )
    return F.scaled_dot_product_attention(q[rows], k[rows], v)
