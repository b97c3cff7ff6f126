"""GroupNorm by PyTorch, in both layouts of memory, against float64."""

import functools
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from nti.kernels.group_norm import group_norm
from torch import Tensor

from checks import with_gradients
from tolerances import FORWARD_FACTOR, GRADIENT_FACTOR, assert_as_exact_as_torch, assert_close

GROUPS, EPS = 4, 1e-5
SMALL, LARGE = (2, 40, 32, 32), (1, 8, 320, 320)
"""The latter has positions enough for the rounding of a plain sum to show."""

pytestmark = [
    pytest.mark.parametrize("silu", [False, True], ids=["plain", "silu"]),
    pytest.mark.parametrize(
        "layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"]
    ),
]


@pytest.fixture(params=[1, 2], ids=["one-thread", "two-threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def exact(x: Tensor, weight: Tensor, bias: Tensor, cotangent: Tensor, silu: bool) -> list[Tensor]:
    """Result and gradient written out in float64."""

    def op(x: Tensor) -> Tensor:
        grouped = x.unflatten(1, (GROUPS, -1)).flatten(2)
        off = grouped - grouped.mean(-1, keepdim=True)
        normed = off / (off.square().mean(-1, keepdim=True) + EPS).sqrt()
        y = normed.view_as(x) * weight.double()[:, None, None] + bias.double()[:, None, None]
        return F.silu(y) if silu else y

    return with_gradients(op, [x.double().contiguous()], cotangent.double())


def inputs(shape: tuple[int, ...], layout: torch.memory_format) -> tuple[Tensor, ...]:
    """Deviations x, weight, bias, and a cotangent that does not vanish on average."""
    g = torch.Generator().manual_seed(0)
    x, cotangent = (torch.randn(shape, generator=g).to(memory_format=layout) for _ in range(2))
    weight, bias = (torch.randn(shape[1], generator=g) for _ in range(2))
    return x, weight, bias, cotangent + 0.5


@pytest.mark.parametrize(
    ("mean", "shape"),
    [*((mean, SMALL) for mean in (0, 3, 10, 30)), (0, LARGE), (10, LARGE)],
    ids=lambda value: "x".join(map(str, value)) if isinstance(value, tuple) else f"mean-{value}",
)
def test_float32_is_exact_however_far_the_mean_is(
    mean: int,
    shape: tuple[int, ...],
    layout: torch.memory_format,
    silu: bool,
    threads: None,
) -> None:
    x, weight, bias, cotangent = inputs(shape, layout)
    check(x + mean, weight, bias, cotangent, silu)


def test_float32_is_exact_where_the_mean_varies(
    layout: torch.memory_format, silu: bool, threads: None
) -> None:
    x, weight, bias, cotangent = inputs(SMALL, layout)
    slope = torch.linspace(-30, 30, 32)
    for varied in (slope[:, None] + 3 * slope, 30 * weight[:, None, None]):
        for mean in (0, 1000):
            check(x + varied + mean, weight, bias, cotangent, silu)


def check(x: Tensor, weight: Tensor, bias: Tensor, cotangent: Tensor, silu: bool) -> None:
    op = functools.partial(group_norm, weight=weight, bias=bias, groups=GROUPS, eps=EPS, silu=silu)
    before = x.clone()
    ours = with_gradients(op, [x], cotangent)
    assert torch.equal(x, before)
    for a, b in zip(ours, exact(x, weight, bias, cotangent, silu), strict=True):
        assert a.stride() == x.stride()
        assert_close(a, b.float())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_other_dtypes_are_as_exact_as_pytorchs_contiguous(
    dtype: torch.dtype, layout: torch.memory_format, silu: bool
) -> None:
    x, *rest = (each.to(dtype) for each in inputs(SMALL, layout))
    weight, bias, cotangent = rest
    x = x + 30

    def op(x: Tensor) -> Tensor:
        return group_norm(x, weight, bias, GROUPS, EPS, silu=silu)

    def torchs(x: Tensor) -> Tensor:
        normed = F.group_norm(x, GROUPS, weight, bias, EPS)
        return F.silu(normed) if silu else normed

    ours = with_gradients(op, [x], cotangent)
    theirs = with_gradients(torchs, [x.contiguous()], cotangent)
    right = exact(x, weight, bias, cotangent, silu)
    for factor, a, b, c in zip((FORWARD_FACTOR, GRADIENT_FACTOR), ours, theirs, right, strict=True):
        if dtype == torch.float64:
            assert_close(a, c)
        else:
            assert_as_exact_as_torch(a, b, c, factor, str(dtype))


@pytest.mark.parametrize("part", ["channels", "positions"])
def test_a_part_of_a_map_is_as_good_as_a_whole_one(
    part: str, layout: torch.memory_format, silu: bool
) -> None:
    x, weight, bias, cotangent = inputs(SMALL, layout)
    x = x + 30
    few = x[:, :20] if part == "channels" else x[:, :20, ::2, 3:]
    op = functools.partial(
        group_norm, weight=weight[:20], bias=bias[:20], groups=GROUPS, eps=EPS, silu=silu
    )
    grad = cotangent[: len(few), :20, : few.shape[2], : few.shape[3]]
    ours = with_gradients(op, [few], grad)
    for a, b in zip(ours, exact(few, weight[:20], bias[:20], grad, silu), strict=True):
        assert_close(a, b.float())
