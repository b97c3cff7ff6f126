"""The pullback: torch.func's numbers, without its memory."""

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor

from nti.vjp import vjp
from tolerances import assert_close


def product(x: Tensor, y: Tensor) -> Tensor:
    return (x.sin() * y).cumsum(0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_it_is_torchs(mode: Callable[[], AbstractContextManager[None]]) -> None:
    g = torch.Generator().manual_seed(0)
    x, y, cotangent = torch.randn(3, 5, dtype=torch.float64, generator=g)
    expected, pull = torch.func.vjp(product, x, y)
    with mode():
        value, found = vjp(product, x, y)
        gradients = found(cotangent)
    assert not value.requires_grad and not x.requires_grad
    assert_close(value, expected)
    for gradient, right in zip(gradients, pull(cotangent), strict=True):
        assert_close(gradient, right)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_it_works_inside_torch_func(mode: Callable[[], AbstractContextManager[None]]) -> None:
    x, y = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def slope(x: Tensor) -> Tensor:
        return vjp(lambda x: product(x, y).sum(), x)[1](torch.ones((), dtype=x.dtype))[0].sum()

    with mode():
        found = torch.func.grad(slope)(x)
    # The second derivative: product is a sum of (5 - i) y_i sin(x_i).
    assert_close(found, -torch.arange(5, 0, -1) * y * x.sin())


def test_what_a_layer_saved_is_freed_before_the_layers_below_it_run() -> None:
    saved: dict[str, weakref.ref[Tensor]] = {}
    alive: dict[str, list[str]] = {}

    class Layer(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, name: str) -> Tensor:
            kept = x.clone()
            saved[name], ctx.name = weakref.ref(kept), name
            ctx.save_for_backward(kept)
            return 2 * x

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
            alive[ctx.name] = [name for name, kept in saved.items() if kept() is not None]
            return 2 * grads[0], None

    _, pull = vjp(lambda x: Layer.apply(Layer.apply(x, "lower"), "upper"), torch.ones(3))
    (gradient,) = pull(torch.ones(3))
    assert gradient.tolist() == [4, 4, 4]
    assert alive == {"upper": ["lower", "upper"], "lower": ["lower"]}
