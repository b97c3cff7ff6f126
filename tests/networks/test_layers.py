"""Layers of frozen weights keep less for the backward pass, and give PyTorch's numbers."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from nti.kernels import feed_forward_onednn, projected_attention_onednn
from nti.kernels.backend import has_onednn
from nti.kernels.geglu import geglu
from torch import Tensor, nn

from checks import Watch
from nti.networks import layers
from nti.networks.attention import CrossAttention, SelfAttention
from nti.networks.control import AttentionControl, Fold, MapCollector, Site
from nti.networks.layers import Conv2d, GroupNormSiLU, Linear, recomputed
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


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("part", [slice(None), slice(4)], ids=["whole", "part"])
def test_a_convolution_tells_its_gradients_layout(layout: torch.memory_format, part: slice) -> None:
    """Else PyTorch on CUDA lays the gradient out anew, and then back. A part of the channels is
    what a skip leaves.
    """
    conv = frozen(Conv2d(4, 4, 3, padding=1))
    x = image(layout).requires_grad_()
    wide = torch.randn(2, 6 if part.stop else 4, 6, 8).double().to(memory_format=layout)
    with Watch() as watch:
        torch.autograd.grad(conv(x), x, wide[:, part])
    ((grad, told, _),) = [given for op, given in watch.given if "convolution_back" in op.name()]
    assert told.shape == x.shape and told.is_contiguous(memory_format=layout)
    assert grad.data_ptr() == wide.data_ptr()


@LAYERS
def test_less_is_kept_than_pytorch_keeps(name: str) -> None:
    ours, theirs = PAIRS[name]
    assert saved_bytes(ours, image()) < saved_bytes(theirs, image())


@pytest.mark.parametrize(
    "layer",
    [Conv2d(4, 6, 3), Conv2d(4, 6, 1), GroupNormSiLU(2, 4, eps=1e-5), Linear(6, 5)],
    ids=["conv", "one-pixel", "norm", "linear"],
)
def test_weights_that_learn_get_their_gradient(layer: nn.Module) -> None:
    layer(torch.randn(1, 4, 6, 6)).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0


class FeedForward(nn.Module):
    """The UNet's, on the positions of an image."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.norm, self.inside = nn.LayerNorm(6), layers.FeedForward(6, backend=backend)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inside(x.flatten(2).transpose(1, 2), self.norm)
        return out


class Itself(nn.Module):
    """Self-attention of two heads among the positions of an image."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        site = Site("down", 0, 0, "self")
        self.norm = nn.LayerNorm(6)
        self.inside = SelfAttention(site, 6, 2, inject=True, backend=backend)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inside(x.flatten(2).transpose(1, 2), self.norm, None)
        return out


class Others(nn.Module):
    """Cross-attention of two heads to some of the positions of an image."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        site = Site("down", 0, 0, "cross")
        self.norm = nn.LayerNorm(6)
        self.inside = CrossAttention(site, 6, 6, 2, maps_words=False, backend=backend)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        out, _ = self.inside(tokens, self.norm, 2 * tokens[:, :5], None)
        return out


class Tokens(nn.Module):
    """A linear layer on the positions of an image."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.linear = Linear(6, 10, bias=False, backend=backend)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(2).transpose(1, 2))


ON_CPU: dict[str, tuple[Callable[[str], nn.Module], str]] = {
    "linear": (Tokens, "_Linear"),
    "self-attention": (Itself, "_ProjectedAttention"),
    "cross-attention": (Others, "_ProjectedAttention"),
    "feed-forward": (FeedForward, "_FeedForward"),
    "few positions": (lambda b: Conv2d(6, 80, 3, padding=1, backend=b), "_ColumnsConv2d"),
    "few strided positions": (
        lambda b: Conv2d(6, 20, 3, stride=2, padding=1, backend=b),
        "_ColumnsConv2d",
    ),
    "one pixel": (lambda b: Conv2d(6, 8, 1, backend=b), "_ColumnsConv2d"),
    "many positions": (lambda b: Conv2d(6, 8, 3, padding=1, backend=b), "_Conv2d"),
}
"""Layers of six channels by backend, and the function by which oneDNN computes them."""


needs_onednn = pytest.mark.skipif(
    not has_onednn(torch.device("cpu"), torch.float32), reason="needs oneDNN"
)


def passed(value: Tensor) -> set[str]:
    """Return the names of the functions that a value came through."""
    found, waiting = set(), [value.grad_fn]
    while waiting:
        function = waiting.pop()
        if function is not None:
            found.add(function.name())
            waiting += [before for before, _ in function.next_functions]
    return found


@needs_onednn
@pytest.mark.parametrize("name", ON_CPU)
def test_onednn_takes_its_own_path_to_the_same_numbers(
    name: str, any_size: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not a divisor of the 72 rows.
    monkeypatch.setattr(feed_forward_onednn, "ROWS", 10)
    make, path = ON_CPU[name]
    exact = frozen(make("reference"))
    ours = make("onednn").requires_grad_(False)
    ours.load_state_dict(exact.state_dict())
    ours.to(memory_format=torch.channels_last)
    g = torch.Generator().manual_seed(1)
    x = torch.randn(2, 6, 4, 9, generator=g).to(memory_format=torch.channels_last)
    y, leaf = x.double().requires_grad_(), x.requires_grad_()
    value, expected = ours(leaf), exact(y)
    assert f"{path}Backward" in passed(value)
    assert_close(value, expected.float())
    for cotangent in (torch.randn(value.shape, generator=g), torch.ones(()).expand_as(value)):
        (found,) = torch.autograd.grad(value, leaf, cotangent, retain_graph=True)
        (right,) = torch.autograd.grad(expected, y, cotangent.double(), retain_graph=True)
        assert_close(found, right.float())


@needs_onednn
def test_work_decides_who_multiplies() -> None:
    layer = Linear(64, 128, backend="onednn").requires_grad_(False)
    for rows in (1023, 1024):
        value = layer(torch.randn(1, rows, 64).requires_grad_())
        assert value.grad_fn is not None
        assert (value.grad_fn.name() == "_LinearBackward") == (rows == 1024)


@pytest.mark.parametrize("contiguous", ["input", "weight"])
def test_a_convolution_is_a_product_for_channels_last_alone(
    contiguous: str, any_size: None
) -> None:
    layer = Conv2d(6, 70, 3, padding=1, backend="onednn").requires_grad_(False)
    x = torch.randn(1, 6, 8, 8, generator=torch.Generator().manual_seed(1))
    if contiguous == "input":
        layer.to(memory_format=torch.channels_last)
    else:
        x = x.to(memory_format=torch.channels_last)
    value = layer(x.requires_grad_())
    assert value.grad_fn is not None and value.grad_fn.name() == "_Conv2dBackward"


@needs_onednn
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (FeedForward, "norm.weight"),
        (FeedForward, "inside.proj_in.bias"),
        (FeedForward, "inside.proj_out.weight"),
        (Itself, "norm.bias"),
        (Itself, "inside.to_k.weight"),
        (Others, "norm.weight"),
        (Others, "inside.to_v.weight"),
    ],
)
def test_a_block_of_which_a_part_learns_gives_it_its_gradient(
    make: Callable[[str], nn.Module], name: str, any_size: None
) -> None:
    layer = make("onednn").requires_grad_(False)
    parameter = layer.get_parameter(name).requires_grad_()
    layer(torch.randn(1, 6, 4, 4)).square().sum().backward()
    assert parameter.grad is not None and parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_norm_of_which_a_part_learns_gives_it_its_gradient(name: str) -> None:
    layer = GroupNormSiLU(2, 4, eps=1e-5).requires_grad_(False)
    parameter = layer.get_parameter(name).requires_grad_()
    layer(torch.randn(1, 4, 6, 6)).square().sum().backward()
    assert parameter.grad is not None and parameter.grad.abs().sum() > 0


def held_by(layer: nn.Module, x: Tensor) -> list[int]:
    """Bytes that the backward pass to x holds, weights aside."""
    weights = {p.data_ptr() for p in layer.parameters()}
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            held[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x.requires_grad_())
    return sorted(held.values())


@needs_onednn
@pytest.mark.parametrize(
    ("most", "more", "kept"), [(11, 0, True), (11, -1, False), (10, 0, False)],
    ids=["small", "large", "many rows"],
)  # fmt: skip
def test_a_feed_forward_keeps_its_input(
    any_size: None, most: int, more: int, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is small and of few rows, its inside as well, which is eight times as wide, and two
    numbers a row. Here are 64 rows of 6 channels."""
    x = torch.randn(1, 6, 8, 8)
    monkeypatch.setattr(feed_forward_onednn, "ROWS_A_CHANNEL", most)
    monkeypatch.setattr(feed_forward_onednn, "KEPT", 8 * x.nbytes + more)
    held = held_by(FeedForward("onednn").requires_grad_(False), x)
    assert held == ([64 * 4, 64 * 4, x.nbytes, 8 * x.nbytes] if kept else [x.nbytes])


@needs_onednn
@pytest.mark.parametrize("small", [False, True], ids=["large", "small"])
def test_self_attention_keeps_its_input_its_result_and_a_number_a_query(
    any_size: None, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is small, q, k and v as well."""
    x = torch.randn(1, 6, 8, 8)
    monkeypatch.setattr(projected_attention_onednn, "KEPT", 3 * x.nbytes - (not small))
    held = held_by(Itself("onednn").requires_grad_(False), x)
    assert held == [2 * 64 * 4] + [x.nbytes] * (5 if small else 2)


@needs_onednn
def test_cross_attention_keeps_the_context_besides(
    any_size: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projected_attention_onednn, "KEPT", 0)
    x = torch.randn(1, 6, 8, 8)
    kept = [5 * 6 * 4, 2 * 64 * 4, x.nbytes, x.nbytes]
    assert held_by(Others("onednn").requires_grad_(False), x) == kept


@needs_onednn
def test_self_attention_by_onednn_passes_over_no_control_and_no_hook(any_size: None) -> None:
    layer = Itself("onednn").requires_grad_(False)
    exact = copy.deepcopy(layer).double()
    exact.inside = Itself("reference").requires_grad_(False).double().inside
    exact.inside.load_state_dict(layer.inside.state_dict())
    x = torch.randn(2, 20, 6, generator=torch.Generator().manual_seed(1))
    rows, none = torch.tensor([0, 0]), torch.empty(0)
    control = AttentionControl(Fold(rows[:0], none, none), self_rows=rows)
    injected = exact.inside(x.double(), exact.norm, control)
    assert_close(layer.inside(x, layer.norm, control), injected.float())
    collector = MapCollector()
    plain = layer.inside(x, layer.norm, None, collector)
    assert [each.probabilities.shape for each in collector.maps] == [(2, 2, 20, 20)]
    assert_close(plain, layer.inside(x, layer.norm))


@needs_onednn
@pytest.mark.parametrize("name", ON_CPU)
def test_onednn_refuses_what_it_does_not_multiply(name: str) -> None:
    layer = ON_CPU[name][0]("onednn").requires_grad_(False).double()
    with pytest.raises(ValueError, match=r"x: got torch\.float64 on cpu, but oneDNN multiplies"):
        layer(torch.randn(1, 6, 4, 9).double())


def test_a_convolution_takes_no_setting_that_its_kernels_would_ignore() -> None:
    for setting in ("dilation", "groups", "padding_mode"):
        with pytest.raises(TypeError, match=setting):
            Conv2d(4, 4, 3, **{setting: 2})
