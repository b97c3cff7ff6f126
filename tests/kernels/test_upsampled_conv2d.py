"""Convolution of a map of twice the sides by each backend, against PyTorch's in float64."""

import pytest
import torch
import torch.nn.functional as F
from nti.kernels import upsampled_conv2d_onednn
from nti.kernels.upsampled_conv2d import upsampled_conv2d
from torch import Tensor

from checks import BY_BACKEND, normal, with_gradients
from tolerances import assert_close

LAYOUTS = pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"]
)


@BY_BACKEND
@LAYOUTS
@pytest.mark.parametrize("sides", [(4, 7), (1, 1)], ids=["4x7", "1x1"])
def test_value_and_gradient(
    backend: str, layout: torch.memory_format, sides: tuple[int, int], any_size: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(upsampled_conv2d_onednn, "FEWEST", 0)
    monkeypatch.setattr(upsampled_conv2d_onednn, "WORTH", 0)
    draw = normal(f"upsampled {sides}", torch.float32, "cpu")
    x = draw(2, 6, *sides).to(memory_format=layout)
    weight, bias = draw(10, 6, 3, 3).to(memory_format=layout), draw(10)
    cotangent = draw(2, 10, 2 * sides[0], 2 * sides[1]).to(memory_format=layout)

    def exact(x: Tensor) -> Tensor:
        large = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        return F.conv2d(large, weight.double(), bias.double(), padding=1)

    def ours(x: Tensor) -> Tensor:
        return upsampled_conv2d(x, weight, bias, backend=backend)

    expected = with_gradients(exact, [x.double()], cotangent.double())
    for found, right in zip(with_gradients(ours, [x], cotangent), expected, strict=True):
        assert_close(found, right.float())


def test_many_positions_in_channels_last_are_four_products(any_size: None) -> None:
    draw = normal("which", torch.float32, "cpu")
    last = {"memory_format": torch.channels_last}
    weight, bias = draw(180, 180, 3, 3), draw(180)
    many, few, small = draw(1, 180, 16, 16), draw(1, 180, 16, 15), draw(1, 160, 16, 16)
    names = []
    for x, by in (
        (many.to(**last), weight.to(**last)),
        (few.to(**last), weight.to(**last)),
        (small.to(**last), weight[:, :160].to(**last)),
        (many, weight.to(**last)),
        (many.to(**last), weight),
    ):
        value = upsampled_conv2d(x.requires_grad_(), by, bias, backend="onednn")
        assert value.grad_fn is not None
        assert value.is_contiguous(**last) or x is many or by is weight
        names.append(value.grad_fn.name().removesuffix("Backward"))
    assert names == ["_UpsampledConv2d"] + ["_Conv2d"] * 4
