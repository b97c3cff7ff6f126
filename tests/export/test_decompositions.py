"""The rules for backward passes against autograd, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nti.export.decompositions import (
    convolution_backward,
    group_norm_backward,
    upsample_nearest2d_backward,
)
from tolerances import assert_close


@pytest.mark.parametrize("size", [(8, 8), (7, 9)], ids=["even", "odd"])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 1, 1), (1, 1, 0), (3, 2, 1), (3, 2, 0), (4, 2, 1)]
)
def test_the_gradient_to_a_convolutions_input(
    size: tuple[int, int], kernel: int, stride: int, padding: int
) -> None:
    g = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, *size, generator=g, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 3, kernel, kernel, generator=g, dtype=torch.float64)
    out = F.conv2d(image, weight, stride=stride, padding=padding)
    gradient = torch.randn(out.shape, generator=g, dtype=torch.float64)
    (expected,) = torch.autograd.grad(out, image, gradient)
    found = convolution_backward(
        gradient, image, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1,
        [True, False, False],
    )  # fmt: skip
    assert found[0] is not None and found[1:] == (None, None)
    assert_close(found[0], expected)


def test_the_gradient_to_repeated_pixels() -> None:
    image = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    out = F.interpolate(image, scale_factor=2.0)
    gradient = torch.randn_like(out)
    (expected,) = torch.autograd.grad(out, image, gradient)
    assert_close(upsample_nearest2d_backward(gradient, [8, 10], [2, 3, 4, 5]), expected)


def group_norm_case(
    layout: torch.memory_format, dtype: torch.dtype, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the rule's gradient to a norm's input, and autograd's in float64."""
    g = torch.Generator().manual_seed(0)
    n, channels, height, width, groups = 2, 12, 5, 4, 3
    image, gradient = (
        torch.randn(n, channels, height, width, generator=g, dtype=torch.float64)
        .add(1).mul(factor).to(dtype).to(memory_format=layout)
        for factor in (1, scale)
    )  # fmt: skip
    weight = torch.randn(channels, generator=g, dtype=torch.float64).to(dtype)
    sizes = n, channels, height * width, groups
    leaf = image.double().requires_grad_()
    normed = F.group_norm(leaf, groups, weight.double())
    (expected,) = torch.autograd.grad(normed, leaf, gradient.double())
    _, *moments = torch.ops.aten.native_group_norm(image, weight, None, *sizes, 1e-5)
    found = group_norm_backward(
        gradient, image, *moments, weight, *sizes, [True, False, False]
    )  # fmt: skip
    assert found[0] is not None and found[1:] == (None, None)
    assert found[0].dtype == dtype
    return found[0], expected


@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"]
)
def test_the_gradient_to_a_group_norms_input(layout: torch.memory_format) -> None:
    assert_close(*group_norm_case(layout, torch.float64, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_a_group_norms_sums_do_not_overflow_in_half_precision(dtype: torch.dtype) -> None:
    found, expected = group_norm_case(torch.contiguous_format, dtype, 3000)
    torch.testing.assert_close(
        found.double(), expected, rtol=0, atol=2 * torch.finfo(dtype).eps * expected.abs().max()
    )


@pytest.mark.parametrize(
    "changed",
    [{"weight": None}, {"wanted": [True, True, False]}, {"wanted": [True, False, True]}],
    ids=["no weight", "its gradient", "the bias's"],
)
def test_a_group_norm_without_frozen_weights_is_refused(changed: dict[str, object]) -> None:
    given = {
        "gradient": torch.zeros(1, 2, 1, 1), "image": torch.zeros(1, 2, 1, 1),
        "mean": torch.zeros(1, 1), "rstd": torch.ones(1, 1), "weight": torch.ones(2), "n": 1,
        "channels": 2, "positions": 1, "groups": 1, "wanted": [True, False, False], **changed,
    }  # fmt: skip
    with pytest.raises(NotImplementedError, match="the input alone"):
        group_norm_backward(**given)


@pytest.mark.parametrize(
    "changed", [{"groups": 3}, {"dilation": [2, 2]}, {"wanted": [True, True, False]}],
    ids=["groups", "dilation", "weight"],
)  # fmt: skip
def test_what_the_networks_do_not_have_is_refused(changed: dict[str, object]) -> None:
    given = {
        "gradient": torch.zeros(1, 3, 4, 4), "image": torch.zeros(1, 3, 4, 4),
        "weight": torch.zeros(3, 3, 1, 1), "bias_sizes": None, "stride": [1, 1],
        "padding": [0, 0], "dilation": [1, 1], "transposed": False, "output_padding": [0, 0],
        "groups": 1, "wanted": [True, False, False], **changed,
    }  # fmt: skip
    with pytest.raises(NotImplementedError, match="expected a plain convolution"):
        convolution_backward(**given)


def test_pixels_are_repeated_a_whole_number_of_times() -> None:
    with pytest.raises(NotImplementedError, match="a whole factor"):
        upsample_nearest2d_backward(torch.zeros(1, 1, 5, 6), [5, 6], [1, 1, 2, 3])
