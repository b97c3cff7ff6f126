"""GroupNorm and SiLU by Triton, in the layout that the convolutions around it take: channels last.

A group of channels is to a position what a head is to a token, so tiles are read and written as
those of attention are: (positions, groups, channels of a group).
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from nti.kernels.backend import check_device_and_dtype
from nti.kernels.tiles import load_tile, store_tile, widen
from torch import Tensor

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

__all__ = ["group_norm", "group_norm_backward", "group_norm_forward"]

LANES, WARPS = 8192, 8
"""Elements of a program's tile, which stay in registers from the moments to the result. A group
that has more is divided: one launch leaves the sums of its parts, and every program of the next
puts them together.
"""


@triton.jit
def _place(positions, groups, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Where this program's row begins, its group, and its positions."""
    # Programs of one position are neighbours: a group is narrower than what memory moves.
    row, group = (tl.program_id(0) // groups).to(tl.int64), tl.program_id(0) % groups
    return row * positions * groups * SIZE, group, tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def _count(part, positions, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """How many elements a part of a group has; none after the last."""
    return tl.minimum(tl.maximum(positions - part * BLOCK, 0), BLOCK) * SIZE


@triton.jit
def _moments(
    x, index, positions, SIZE: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK: tl.constexpr
):
    """Mean of a tile's elements, and the sum of their squared distances from it."""
    there = (index < positions)[:, None] & (tl.arange(0, BLOCK_SIZE) < SIZE)[None, :]
    mean = tl.sum(x) / _count(tl.program_id(1), positions, SIZE, BLOCK)
    off = tl.where(there, x - mean, 0.0)
    return mean, tl.sum(off * off)


@triton.jit
def _load_parts(parts_ptr, BLOCK_PARTS: tl.constexpr):
    """A group's two sums of each part, zeros after the last."""
    part = tl.arange(0, BLOCK_PARTS)
    mask = part < tl.num_programs(1)
    at = parts_ptr + (tl.program_id(0) * tl.num_programs(1) + part) * 2
    return tl.load(at, mask=mask, other=0.0), tl.load(at + 1, mask=mask, other=0.0)


@triton.jit
def _store_part(parts_ptr, first, second):
    at = parts_ptr + (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * 2
    tl.store(at, first)
    tl.store(at + 1, second)


@triton.jit
def _load_channels(ptr, group, SIZE: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """A number for each channel of a group."""
    channel = tl.arange(0, BLOCK_SIZE)
    return widen(tl.load(ptr + group * SIZE + channel, mask=channel < SIZE, other=0.0))[None, :]


@triton.jit
def _moments_kernel(
    x_ptr,
    parts_ptr,
    positions,
    groups,
    SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    base, group, index = _place(positions, groups, SIZE, BLOCK)
    x = widen(load_tile(x_ptr + base, index, positions, groups, group, SIZE, BLOCK_SIZE))
    mean, spread = _moments(x, index, positions, SIZE, BLOCK_SIZE, BLOCK)
    _store_part(parts_ptr, mean, spread)


# Memory alone: forward x is read and y written, and x read once more for the moments of a divided
# group; backward x and d_y are read, d_x written, and the first two read once more. SD v1 at
# 512 px, level 0 (4096 positions, 320 channels), float16: 2.6 MB each, which the L2 cache holds.
@triton.jit
def _group_norm_fwd_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    parts_ptr,
    y_ptr,
    stats_ptr,
    positions,
    groups,
    eps,
    SILU: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    base, group, index = _place(positions, groups, SIZE, BLOCK)
    x = widen(load_tile(x_ptr + base, index, positions, groups, group, SIZE, BLOCK_SIZE))
    if BLOCK_PARTS == 1:
        mean, spread = _moments(x, index, positions, SIZE, BLOCK_SIZE, BLOCK)
    else:
        # Chan, Golub and LeVeque 1983, of all parts at once.
        means, spreads = _load_parts(parts_ptr, BLOCK_PARTS)
        counts = _count(tl.arange(0, BLOCK_PARTS), positions, SIZE, BLOCK)
        mean = tl.sum(means * counts) / (positions * SIZE)
        off = means - mean
        spread = tl.sum(spreads + counts * off * off)
    rstd = tl.rsqrt(spread / (positions * SIZE) + eps)
    weight = _load_channels(weight_ptr, group, SIZE, BLOCK_SIZE)
    bias = _load_channels(bias_ptr, group, SIZE, BLOCK_SIZE)
    y = (x - mean) * rstd * weight + bias
    if SILU:
        y = y * tl.sigmoid(y)
    store_tile(y_ptr + base, y, index, positions, groups, group, SIZE, BLOCK_SIZE)
    if tl.program_id(1) == 0:
        tl.store(stats_ptr + tl.program_id(0) * 2, mean)
        tl.store(stats_ptr + tl.program_id(0) * 2 + 1, rstd)


# SUMS: the first of two launches, which only adds up what the second needs of a divided group.
@triton.jit
def _group_norm_bwd_kernel(
    d_y_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    stats_ptr,
    parts_ptr,
    d_x_ptr,
    positions,
    groups,
    SUMS: tl.constexpr,
    SILU: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    base, group, index = _place(positions, groups, SIZE, BLOCK)
    x = widen(load_tile(x_ptr + base, index, positions, groups, group, SIZE, BLOCK_SIZE))
    d_y = widen(load_tile(d_y_ptr + base, index, positions, groups, group, SIZE, BLOCK_SIZE))
    mean = tl.load(stats_ptr + tl.program_id(0) * 2)
    rstd = tl.load(stats_ptr + tl.program_id(0) * 2 + 1)
    weight = _load_channels(weight_ptr, group, SIZE, BLOCK_SIZE)
    normed = (x - mean) * rstd
    if SILU:
        y = normed * weight + _load_channels(bias_ptr, group, SIZE, BLOCK_SIZE)
        gate = tl.sigmoid(y)
        d_y = d_y * gate * (1 + y * (1 - gate))
    d_normed = d_y * weight
    if SUMS or BLOCK_PARTS == 1:
        sum_1 = tl.sum(d_normed)
        sum_2 = tl.sum(d_normed * normed)
    else:
        sums_1, sums_2 = _load_parts(parts_ptr, BLOCK_PARTS)
        sum_1 = tl.sum(sums_1)
        sum_2 = tl.sum(sums_2)
    if SUMS:
        _store_part(parts_ptr, sum_1, sum_2)
    else:
        d_x = (d_normed - (sum_1 + normed * sum_2) / (positions * SIZE)) * rstd
        store_tile(d_x_ptr + base, d_x, index, positions, groups, group, SIZE, BLOCK_SIZE)


class _Division(NamedTuple):
    """How x (B, c, h, w) is divided among programs."""

    positions: int
    grid: tuple[int, int]
    """Groups of all rows, and parts of each."""
    parts: Tensor | None
    """Two sums a part; None where a program holds a whole group."""
    constants: dict[str, int]


def _divide(x: Tensor, groups: int) -> _Division:
    positions, size = x.shape[2] * x.shape[3], x.shape[1] // groups
    block_size = triton.next_power_of_2(size)
    block = min(triton.next_power_of_2(positions), max(1, LANES // block_size))
    count = triton.cdiv(positions, block)
    grid = (x.shape[0] * groups, count)
    parts = x.new_empty(*grid, 2, dtype=torch.float32) if count > 1 else None
    constants = {"SIZE": size, "BLOCK_SIZE": block_size, "BLOCK": block, "num_warps": WARPS}
    return _Division(positions, grid, parts, constants)


@torch.library.custom_op("nti::group_norm_fwd", mutates_args=())
def group_norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor]:
    """The result (B, c, h, w), channels last, and each group's mean and 1 / deviation (B, G, 2)."""
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.empty_like(x, memory_format=torch.channels_last)
    stats = x.new_empty(x.shape[0], groups, 2, dtype=torch.float32)
    positions, grid, parts, constants = _divide(x, groups)
    with torch.cuda.device_of(x):
        if parts is not None:
            _moments_kernel[grid](x, parts, positions, groups, **constants)
        _group_norm_fwd_kernel[grid](
            x,
            weight,
            bias,
            parts,
            y,
            stats,
            positions,
            groups,
            eps,
            SILU=silu,
            BLOCK_PARTS=triton.next_power_of_2(grid[1]),
            **constants,
        )
    return y, stats


@group_norm_forward.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor]:
    y = torch.empty_like(x, memory_format=torch.channels_last)
    return y, x.new_empty(x.shape[0], groups, 2, dtype=torch.float32)


@torch.library.custom_op("nti::group_norm_bwd", mutates_args=())
def group_norm_backward(
    d_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, stats: Tensor, silu: bool
) -> Tensor:
    """The gradient to x (B, c, h, w), channels last, from that to the result."""
    x, d_y = (each.contiguous(memory_format=torch.channels_last) for each in (x, d_y))
    d_x, groups = torch.empty_like(x, memory_format=torch.channels_last), stats.shape[1]
    positions, grid, parts, constants = _divide(x, groups)
    with torch.cuda.device_of(x):
        for sums in (False,) if parts is None else (True, False):
            _group_norm_bwd_kernel[grid](
                d_y,
                x,
                weight,
                bias,
                stats,
                parts,
                d_x,
                positions,
                groups,
                SUMS=sums,
                SILU=silu,
                BLOCK_PARTS=triton.next_power_of_2(grid[1]),
                **constants,
            )
    return d_x


@group_norm_backward.register_fake
def _(d_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, stats: Tensor, silu: bool) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


class _GroupNorm(torch.autograd.Function):
    """The op and its gradient, wrapped around it so that `torch.func` takes it."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
    ) -> tuple[Tensor, Tensor]:
        y, stats = group_norm_forward(x, weight, bias, groups, eps, silu)
        return y, stats

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, bias, _, _, ctx.silu = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, bias, output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return group_norm_backward(grads[0], *ctx.saved_tensors, ctx.silu), *[None] * 5


def group_norm(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> Tensor:
    """Like `nti.kernels.group_norm.group_norm`, by Triton."""
    check_device_and_dtype(x.device, x.dtype)
    if x.ndim != 4 or groups < 1 or x.shape[1] % groups or not x.shape[2:].numel():
        raise ValueError(
            f"x: got {tuple(x.shape)} in {groups} groups, expected (B, c, h, w) with positions, and"
            " with channels that the groups divide"
        )
    for name, each in (("weight", weight), ("bias", bias)):
        if each.shape != x.shape[1:2] or each.device != x.device or not each.is_contiguous():
            raise ValueError(
                f"{name}: got {tuple(each.shape)} on {each.device}, strides {each.stride()},"
                f" expected ({x.shape[1]},) on {x.device}, contiguous"
            )
    out: Tensor = _GroupNorm.apply(x, weight, bias, groups, eps, silu)[0]
    return out
