"""The rules for backward passes against autograd, in float64."""

import pytest
import torch
import torch.nn.functional as F

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


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_to_a_group_norms_input(layout: torch.memory_format) -> None:
    g = torch.Generator().manual_seed(0)
    n, channels, height, width, groups = 2, 12, 5, 4, 3
    image, gradient = (
        torch.randn(n, channels, height, width, generator=g, dtype=torch.float64).add(3)
        .to(memory_format=layout)
        for _ in range(2)
    )  # fmt: skip
    weight = torch.randn(channels, generator=g, dtype=torch.float64)
    sizes = n, channels, height * width, groups
    image.requires_grad_()
    normed, mean, rstd = torch.ops.aten.native_group_norm(image, weight, None, *sizes, 1e-5)
    (expected,) = torch.autograd.grad(normed, image, gradient)
    with torch.no_grad():
        found = group_norm_backward(
            gradient, image, mean, rstd, weight, *sizes, [True, False, False]
        )
    assert found[0] is not None and found[1:] == (None, None)
    assert_close(found[0], expected)


def test_a_group_norms_weights_are_frozen() -> None:
    image, moment = torch.zeros(1, 2, 1, 1), torch.zeros(1, 1)
    sizes = 1, 2, 1, 1
    with pytest.raises(NotImplementedError, match="the input alone"):
        group_norm_backward(
            image, image, moment, moment, torch.ones(2), *sizes, [True, True, False]
        )


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
