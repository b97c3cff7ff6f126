"""Product of rows with a frozen matrix."""

import torch.nn.functional as F
from nti.kernels.backend import provides
from torch import Tensor

__all__ = ["linear", "reference"]


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str = "reference"
) -> Tensor:
    """X W^T + b.

    Args:
        x: (..., c_in).
        weight: (c_out, c_in).
        bias: (c_out,), or None.
        backend: `onednn` and `onednn-products` have a kernel of their own, for float32 on a CPU.

    Returns:
        (..., c_out). Differentiable in x; by the reference also in the weights.

    Raises:
        ValueError: an unknown backend, or an input that oneDNN does not multiply.

    """
    if provides(backend, "linear"):
        from nti.kernels import linear_onednn

        return linear_onednn.linear(x, weight, bias)
    return reference(x, weight, bias)


def reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same on PyTorch's BLAS."""
    return F.linear(x, weight, bias)
