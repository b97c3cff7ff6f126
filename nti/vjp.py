"""The vector-Jacobian product, traceable in a graph and lean outside of one."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["vjp"]


def vjp(
    function: Callable[..., Tensor], *inputs: Tensor
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, ...]]]:
    """function(*inputs), and the map of a gradient to it to those to the inputs, for one call.

    torch.func.vjp is what torch.compile can trace, and what works inside torch.func. Elsewhere,
    plain autograd spends less on entering a layer and frees what it saved as soon as its gradient
    is known.
    """
    if torch.compiler.is_compiling() or torch._C._functorch.maybe_current_level() is not None:
        out, pull = torch.func.vjp(function, *inputs)  # type: ignore[misc]
        return out, pull
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in inputs]
        out = function(*leaves)
    return out.detach(), lambda gradient: torch.autograd.grad(out, leaves, gradient)
