"""The one table of tolerances: ||a - b|| / ||b|| that a dtype's arithmetic leaves."""

import os

import torch
from torch import Tensor

RELATIVE = {torch.float64: 1e-10, torch.float32: 1e-5}

RELATIVE_OPTIMIZED = 1e-6
"""Of embeddings that Adam made in float64: it divides by the gradient's own size, so rounding grows
where a gradient is near zero."""


MEASURED: dict[tuple[str, str], float] = {}
"""The largest error of every test and dtype so far, for `pytest --errors FILE`."""

FORWARD_FACTOR, GRADIENT_FACTOR = 2.0, 3.0
"""A kernel's error, in units of the one that PyTorch makes in the same dtype: tiles add up in
another order, and a gradient is a longer chain of such sums."""


def relative_error(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b||."""
    return float(((a - b).norm() / b.norm()).detach())


def assert_close(a: Tensor, b: Tensor) -> None:
    """Fail where two tensors differ by more than their dtype allows, or hold a NaN."""
    assert a.shape == b.shape
    error = relative_error(a, b)
    note_error(error, b.dtype)
    assert error <= RELATIVE[b.dtype], f"relative error {error:.2e}"


def note_error(error: float, dtype: torch.dtype) -> None:
    """Keep a test's largest error."""
    key = os.environ["PYTEST_CURRENT_TEST"].split(" ")[0], str(dtype).removeprefix("torch.")
    MEASURED[key] = max(error, MEASURED.get(key, 0.0))


def assert_as_exact_as_torch(
    ours: Tensor, torchs: Tensor, exact: Tensor, factor: float, name: str
) -> None:
    """Fail where `ours` is further from the float64 `exact` than `factor` times PyTorch is."""
    assert ours.shape == torchs.shape == exact.shape, name
    assert ours.dtype == torchs.dtype, name
    assert exact.dtype == torch.float64 and exact.norm() > 0, name
    error, allowed = relative_error(ours, exact), factor * relative_error(torchs, exact)
    assert error <= allowed, f"{name}: relative error {error:.2e}, allowed {allowed:.2e}"
