"""The feed-forward of a transformer: norm, product, GEGLU, product."""

from nti.kernels.backend import provides
from nti.kernels.geglu import geglu
from nti.kernels.layer_norm import LayerNorm
from nti.kernels.linear import linear
from torch import Tensor

__all__ = ["feed_forward", "reference"]


def feed_forward(
    x: Tensor,
    norm: LayerNorm,
    w_in: Tensor,
    b_in: Tensor,
    w_out: Tensor,
    b_out: Tensor,
    *,
    backend: str = "reference",
) -> Tensor:
    """GEGLU(norm(x) W_in^T + b_in) W_out^T + b_out.

    Args:
        x: (B, L, c).
        norm: of x.
        w_in: (2i, c).
        b_in: (2i,).
        w_out: (c, i).
        b_out: (c,).
        backend: `onednn` and `onednn-products` have a kernel of their own, for float32 on a CPU;
            `triton` has one of GEGLU.

    Returns:
        (B, L, c). Differentiable in x; by the reference also in the weights.

    Raises:
        ValueError: an unknown backend, or inputs that it does not take.

    """
    if provides(backend, "feed_forward"):
        from nti.kernels import feed_forward_onednn

        return feed_forward_onednn.feed_forward(x, norm, w_in, b_in, w_out, b_out)
    return reference(x, norm, w_in, b_in, w_out, b_out, backend=backend)


def reference(
    x: Tensor,
    norm: LayerNorm,
    w_in: Tensor,
    b_in: Tensor,
    w_out: Tensor,
    b_out: Tensor,
    *,
    backend: str = "reference",
) -> Tensor:
    """The same as four ops, each by the backend."""
    gated = geglu(linear(norm(x), w_in, b_in, backend=backend), backend=backend)
    return linear(gated, w_out, b_out, backend=backend)
