"""Attention from its input: norm, projections, softmax(q k^T / sqrt(d)) v.

What happens at a site that nobody controls or looks at. Taken together, a backend may choose what
it keeps for the backward pass.
"""

from einops import rearrange
from nti.kernels.backend import provides
from nti.kernels.cfg_attention import cfg_attention
from nti.kernels.layer_norm import LayerNorm
from nti.kernels.linear import linear
from nti.kernels.self_attention import self_attention
from torch import Tensor

__all__ = ["merge_heads", "project", "projected_attention", "reference"]

Projections = tuple[Tensor, Tensor, Tensor]
"""The weights to q (heads * d, c), k and v (heads * d, C)."""


def projected_attention(
    x: Tensor,
    norm: LayerNorm,
    context: Tensor | None,
    projections: Projections,
    heads: int,
    *,
    backend: str = "reference",
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, of norm(x)'s projection q and the context's k and v.

    Args:
        x: (B, L, c).
        norm: of x.
        context: (B, S, C); None: norm(x).
        projections: to q, k and v.
        heads: their number.
        backend: `onednn` has a kernel of its own, for float32 on a CPU; `triton` one of
            cross-attention.

    Returns:
        (B, L, heads * d). Differentiable in x and the context; by the reference also in the
        weights.

    Raises:
        ValueError: an unknown backend, or inputs that it does not take.

    """
    if provides(backend, "projected_attention"):
        from nti.kernels import projected_attention_onednn

        return projected_attention_onednn.projected_attention(x, norm, context, projections, heads)
    return reference(x, norm, context, projections, heads, backend=backend)


def reference(
    x: Tensor,
    norm: LayerNorm,
    context: Tensor | None,
    projections: Projections,
    heads: int,
    *,
    backend: str = "reference",
) -> Tensor:
    """The same as one op after the other, each by the backend."""
    q, k, v = project(norm(x), context, projections, heads, backend=backend)
    if context is None:
        return merge_heads(self_attention(q, k, v))
    return merge_heads(cfg_attention(q, k, v, backend=backend)[0])


def project(
    normed: Tensor,
    context: Tensor | None,
    projections: Projections,
    heads: int,
    *,
    backend: str = "reference",
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of the first, keys and values of the second or else of the first.

    (B, L, c), (B, S, C) -> (B, heads, L, d), (B, heads, S, d), (B, heads, S, d).
    """
    source = normed if context is None else context
    q, k, v = (
        rearrange(linear(x, w, backend=backend), "b l (heads d) -> b heads l d", heads=heads)
        for x, w in zip((normed, source, source), projections, strict=True)
    )
    return q, k, v


def merge_heads(x: Tensor) -> Tensor:
    """(B, heads, L, d) -> (B, L, heads * d)."""
    return rearrange(x, "b heads l d -> b l (heads d)")
