"""Layer norm of frozen weights, as a value that ops are given."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["LayerNorm", "layer_norm_backward"]


class LayerNorm(NamedTuple):
    """Ba, Kiros and Hinton 2016 (arXiv 1607.06450)."""

    weight: Tensor
    """(c,)."""
    bias: Tensor
    """(c,)."""
    eps: float
    """Added to the variance."""

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise (..., c) over c."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


def layer_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> Tensor:
    """Turn the gradient to the norm's output (..., c) into that to its input x (..., c)."""
    out: Tensor = torch.ops.aten.native_layer_norm_backward(
        grad, x, weight.shape, mean, rstd, weight, bias, [True, False, False]
    )[0]
    return out
