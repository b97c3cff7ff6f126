"""The pullback: torch.func's numbers, without its memory."""

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor

from nti.sampling.step import vjp
from tolerances import assert_close


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_it_is_torchs(mode: Callable[[], AbstractContextManager[None]]) -> None:
    g = torch.Generator().manual_seed(0)
    x, cotangent = torch.randn(2, 5, dtype=torch.float64, generator=g)
    expected, pull = torch.func.vjp(lambda x: x.sin().cumsum(0), x)
    with mode():
        value, found = vjp(lambda x: x.sin().cumsum(0), x)
        gradient = found(cotangent)
    assert not value.requires_grad and not x.requires_grad
    assert_close(value, expected)
    assert_close(gradient, pull(cotangent)[0])


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
    assert pull(torch.ones(3)).tolist() == [4, 4, 4]
    assert alive == {"upper": ["lower", "upper"], "lower": ["lower"]}
