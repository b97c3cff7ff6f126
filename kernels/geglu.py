"""GEGLU, the gate inside a transformer's feed-forward."""

from typing import Any

import torch
import torch.nn.functional as F
from nti.kernels.backend import provides
from torch import Tensor

__all__ = ["geglu", "geglu_backward", "geglu_forward", "reference"]


def geglu(x: Tensor, *, backend: str = "reference") -> Tensor:
    """GEGLU (Shazeer 2020, arXiv 2002.05202) with the exact GELU.

    Args:
        x: (..., 2c), of which the first half of the channels is the value, the second the gate.
        backend: `reference` or `triton`; the latter takes float16, bfloat16 and float32.

    Returns:
        value * gelu(gate), (..., c) in x's dtype. Differentiable; x alone is saved.

    Raises:
        ValueError: an unknown backend, or an input that the Triton kernels do not take.

    """
    if provides(backend, "geglu"):
        from nti.kernels import geglu_triton

        return geglu_triton.geglu(x)
    return reference(x)


def reference(x: Tensor) -> Tensor:
    """The same on PyTorch's GELU."""
    out: Tensor = _GEGLU.apply(x)
    return out


class _GEGLU(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return geglu_forward(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return geglu_backward(grads[0], ctx.saved_tensors[0])


def geglu_forward(x: Tensor) -> Tensor:
    """(..., 2c) -> (..., c), without a gradient."""
    value, gate = x.chunk(2, dim=-1)
    return F.gelu(gate).mul_(value)


def geglu_backward(grad: Tensor, x: Tensor) -> Tensor:
    """Turn the gradient (..., c) to the result into that to x (..., 2c)."""
    value, gate = x.chunk(2, dim=-1)
    of_gate = torch.ops.aten.gelu_backward(grad * value, gate)
    return torch.cat([F.gelu(gate).mul_(grad), of_gate], dim=-1)
