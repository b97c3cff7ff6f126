"""Layers that keep less for the backward pass: the same numbers as PyTorch's own."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nti.networks.frozen import Conv2d, GroupNormSiLU, geglu, recomputed
from tolerances import assert_close


def frozen(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in layer.double().parameters():
        nn.init.normal_(parameter)
    return layer.requires_grad_(False)


CONV = frozen(Conv2d(4, 6, 3, padding=1))
STRIDED = frozen(Conv2d(4, 6, 3, stride=2, padding=1))
NORM = frozen(GroupNormSiLU(2, 4, eps=1e-5))

PAIRS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "conv": (CONV, lambda x: F.conv2d(x, CONV.weight, CONV.bias, padding=1)),
    "strided-conv": (
        STRIDED,
        lambda x: F.conv2d(x, STRIDED.weight, STRIDED.bias, stride=2, padding=1),
    ),
    "group-norm-silu": (
        NORM,
        lambda x: F.silu(F.group_norm(x, 2, NORM.weight, NORM.bias, 1e-5)),
    ),
    "geglu": (geglu, lambda x: x.chunk(2, -1)[0] * F.gelu(x.chunk(2, -1)[1])),
    "recomputed": (lambda x: recomputed(lambda y: CONV(y) ** 2, x), lambda x: CONV(x) ** 2),
}
LAYERS = pytest.mark.parametrize("name", PAIRS)


def image(layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, 6, 8, generator=g, dtype=torch.float64).to(memory_format=layout)


def saved_bytes(run: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Bytes of activations that the backward pass holds, weights aside."""
    weights = {p.data_ptr() for layer in (CONV, STRIDED, NORM) for p in layer.parameters()}
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            held[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run(x.requires_grad_())
    assert out.requires_grad
    return sum(held.values())


@LAYERS
@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"]
)
def test_value_and_gradient_are_pytorchs(name: str, layout: torch.memory_format) -> None:
    ours, theirs = PAIRS[name]
    x = image(layout)
    value, pull = torch.func.vjp(ours, x)
    expected, pull_expected = torch.func.vjp(theirs, x)
    assert_close(value, expected)
    cotangent = torch.randn(value.shape, generator=torch.Generator().manual_seed(2)).double()
    assert_close(pull(cotangent)[0], pull_expected(cotangent)[0])
    assert_close(torch.autograd.grad(ours(x.requires_grad_()), x, cotangent)[0], pull(cotangent)[0])


@LAYERS
def test_less_is_kept_than_pytorch_keeps(name: str) -> None:
    ours, theirs = PAIRS[name]
    assert saved_bytes(ours, image()) < saved_bytes(theirs, image())


@pytest.mark.parametrize("layer", [Conv2d(4, 6, 3), GroupNormSiLU(2, 4)], ids=["conv", "norm"])
def test_weights_that_learn_get_their_gradient(layer: nn.Module) -> None:
    layer(torch.randn(1, 4, 6, 6)).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0
