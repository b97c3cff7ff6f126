"""The one table of tolerances: ||a - b|| / ||b|| that a dtype's arithmetic leaves."""

import torch
from torch import Tensor

RELATIVE = {torch.float64: 1e-10, torch.float32: 1e-5}

RELATIVE_OPTIMIZED = 1e-6
"""Of embeddings that Adam made in float64: it divides by the gradient's own size, so rounding grows
where a gradient is near zero."""


def relative_error(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b||."""
    return float((a - b).norm() / b.norm())


def assert_close(a: Tensor, b: Tensor) -> None:
    """Fail where two tensors differ by more than their dtype allows, or hold a NaN."""
    assert a.shape == b.shape
    error = relative_error(a, b)
    assert error <= RELATIVE[b.dtype], f"relative error {error:.2e}"
