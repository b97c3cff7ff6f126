"""What the Triton kernels share: sizes of tiles, and how a tile is read, rounded and written.

Inside the kernels a tensor (B, heads, L, d) lies as (B, L, heads, d), contiguous: so it leaves its
projection, a view and no copy, and so outputs go to the next one. No kernel needs a stride then.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

__all__ = [
    "INTERPRETED",
    "LOG2_E",
    "dot",
    "empty_heads",
    "load_tile",
    "narrow",
    "padded",
    "parts_of",
    "store_tile",
    "token_major",
    "widen",
]

LOG2_E = math.log2(math.e)
"""The hardware's exponential is 2^x: scores are scaled by this once."""


def padded(size: int) -> int:
    """Return the power of two, at least 16, that a tile's side must have."""
    return max(16, 1 << (size - 1).bit_length()) if size else 16


def parts_of(dtype: torch.dtype, head: int) -> int:
    """Return into how many equal parts a head is cut, so that no tile is too wide.

    A part fills 256 bytes of a token at most: a tile of all tokens is 32 KiB of shared memory.
    """
    most = 256 // dtype.itemsize
    return next(n for n in range(1, head + 1) if head % n == 0 and head // n <= most)


def token_major(x: Tensor) -> Tensor:
    """(B, heads, L, d) -> (B, L, heads, d), contiguous: free if x came from a projection."""
    return x.transpose(1, 2).contiguous()


def empty_heads(like: Tensor) -> Tensor:
    """Return memory of the shape (B, heads, L, d) of `like`, laid out as (B, L, heads, d)."""
    rows, heads, length, size = like.shape
    return like.new_empty(rows, length, heads, size).transpose(1, 2)


@triton.jit
def load_tile(base, index, count, heads, head, width, BLOCK_WIDTH: tl.constexpr):
    """Rows `index` of one head of a (count, heads, width) tensor, zeros outside it."""
    column = head * width + tl.arange(0, BLOCK_WIDTH)
    mask = (index < count)[:, None] & (column < head * width + width)[None, :]
    return tl.load(base + index[:, None] * (heads * width) + column[None, :], mask=mask, other=0.0)


INTERPRETED = not isinstance(load_tile, triton.JITFunction)
"""Whether Triton was imported under TRITON_INTERPRET=1: then the kernels run on the CPU."""

EMULATE_BF16 = tl.constexpr(INTERPRETED)
"""The interpreter keeps bfloat16 as bits, cuts them off in a cast and cannot multiply them."""


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """Round a float32 tile to `dtype`, to nearest even."""
    if EMULATE_BF16 and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(dtype)


@triton.jit
def widen(x):
    """Turn a tile into float32."""
    if EMULATE_BF16 and x.dtype == tl.bfloat16:
        bits = x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
        return bits.to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@triton.jit
def store_tile(base, tile, index, count, heads, head, width, BLOCK_WIDTH: tl.constexpr):
    """Write rows `index` of one head of a (count, heads, width) tensor, in its own dtype."""
    column = head * width + tl.arange(0, BLOCK_WIDTH)
    mask = (index < count)[:, None] & (column < head * width + width)[None, :]
    tile = narrow(tile, base.dtype.element_ty)
    tl.store(base + index[:, None] * (heads * width) + column[None, :], tile, mask=mask)


@triton.jit
def dot(a, b, accumulator=None):
    """Add a @ b to a float32 tile, or to zeros; float32 is multiplied as it is, never as TF32."""
    if EMULATE_BF16:
        # A product of two halves is exact in float32, so this is what the tensor cores do.
        a = widen(a)
        b = widen(b)
    return tl.dot(a, b, accumulator, input_precision="ieee")
