"""Convolution by each backend, against PyTorch's in float64."""

import pytest
import torch
import torch.nn.functional as F
from nti.kernels.conv2d import conv2d
from nti.kernels.conv2d_onednn import _ColumnsConv2d

from checks import BY_BACKEND, normal, with_gradients
from tolerances import assert_close

LAYOUTS = pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"]
)


@BY_BACKEND
@LAYOUTS
@pytest.mark.parametrize("sides", [(4, 9), (3, 3)], ids=["4x9", "3x3"])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (1, 1, 0)], ids=["3x3", "down", "1x1"]
)
def test_value_and_gradient(
    backend: str, layout: torch.memory_format, sides: tuple[int, int], kernel: int, stride: int,
    padding: int, any_size: None,
) -> None:  # fmt: skip
    draw = normal(f"conv {sides} {kernel} {stride}", torch.float32, "cpu")
    x = draw(2, 6, *sides).to(memory_format=layout)
    weight = draw(80, 6, kernel, kernel).to(memory_format=layout)
    bias = draw(80)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), stride, padding)
    cotangent = draw(*exact.shape)
    expected = with_gradients(
        lambda x: F.conv2d(x, weight.double(), bias.double(), stride, padding),
        [x.double()],
        cotangent.double(),
    )
    found = with_gradients(
        lambda x: conv2d(x, weight, bias, stride, padding, backend=backend), [x], cotangent
    )
    for ours, right in zip(found, expected, strict=True):
        assert_close(ours, right.float())


def test_few_positions_in_channels_last_are_a_product(any_size: None) -> None:
    draw = normal("which", torch.float32, "cpu")
    x, weight, bias = draw(1, 6, 4, 4), draw(80, 6, 3, 3), draw(80)
    last = {"memory_format": torch.channels_last}
    names = []
    for given, by in (
        (x.to(**last), weight.to(**last)),
        (x, weight.to(**last)),
        (x.to(**last), weight),
    ):
        value = conv2d(given.requires_grad_(), by, bias, 1, 1, backend="onednn")
        assert value.grad_fn is not None
        names.append(value.grad_fn.name().removesuffix("Backward"))
    assert names == [_ColumnsConv2d.__name__, "_Conv2d", "_Conv2d"]
