"""What the compiler makes of the shipped launches for GPUs that are not here: no register may spill
and shared memory must fit. `docs/kernels.md` holds the table.
"""

import os
import sys
from collections.abc import Callable, Iterator

import pytest
import torch

pytest.importorskip("triton")
from nti.kernels.attention_backward_triton import attention_backward
from nti.kernels.cfg_attention_triton import cfg_attention_forward
from nti.kernels.geglu_triton import geglu_backward, geglu_forward
from nti.kernels.group_norm_triton import group_norm_backward, group_norm_forward
from nti.kernels.self_attention_triton import self_attention_forward

from ahead_of_time import Resources, compile_for, launches_of

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels cannot be compiled"
)

SHARED_LIMIT = {80: 99 * 1024, 90: 227 * 1024}
"""Bytes that a block may use on this compute capability; the first also on 8.6 and 8.9, which have
the least of those that run the code for 8.0.
"""

SITES = {40: 4096, 80: 1024, 160: 256}
"""SD v1 at 512 px: positions by head size; 8 heads."""

LAYERS = {320: 64, 640: 32, 960: 64, 1280: 8, 1920: 32, 2560: 16, 64: 16}
"""Sides of the feature map by its channels: where the UNet's norms are, the last the embedded
model's; groups of 10 to 80 channels, whole and divided.
"""

Op = Callable[[], object]


def attention(dtype: torch.dtype, head: int, length: int) -> dict[str, Op]:
    """Every op of attention as the UNet calls it, on memory that is never read."""

    def empty(length: int) -> torch.Tensor:
        return torch.empty(3, length, 8, head, dtype=dtype).transpose(1, 2)

    q, k = empty(length), empty(77)
    lse, rows = torch.empty(q.shape[:-1]), torch.empty(3, dtype=torch.int64)
    fold = (rows[:1], torch.empty(1, 77, 77), torch.empty(1, 77))
    words = torch.empty(2, 77, 3)
    return {
        "self": lambda: self_attention_forward(q, q, q, rows),
        "self-backward": lambda: attention_backward(q, q, q, q, q, lse, None),
        "cross-backward": lambda: attention_backward(q, q, k, k, q, lse, None),
        "cross": lambda: cfg_attention_forward(q, k, k, None, None, None, None),
        "fold": lambda: cfg_attention_forward(q, k, k, *fold, None),
        "fold-words": lambda: cfg_attention_forward(q, k, k, *fold, words),
    }


def layers(dtype: torch.dtype, channels: int) -> dict[str, Op]:
    """The ops between the products, likewise."""
    side = LAYERS[channels]
    x = torch.empty(3, channels, side, side, dtype=dtype).to(memory_format=torch.channels_last)
    weight, stats = x.new_empty(channels), torch.empty(3, 32, 2)
    wide, narrow = (x.new_empty(3, side**2, n * channels) for n in (8, 4))
    return {
        "norm": lambda: group_norm_forward(x, weight, weight, 32, 1e-6, False),
        "norm-backward": lambda: group_norm_backward(x, x, weight, weight, stats, False),
        "norm-silu": lambda: group_norm_forward(x, weight, weight, 32, 1e-5, True),
        "norm-silu-backward": lambda: group_norm_backward(x, x, weight, weight, stats, True),
        "geglu": lambda: geglu_forward(wide),
        "geglu-backward": lambda: geglu_backward(narrow, wide),
    }


def measured(op: Op) -> Iterator[tuple[str, int, Resources]]:
    for launch in launches_of(op):
        for capability in SHARED_LIMIT:
            yield launch.kernel.__name__, capability, compile_for(launch, capability)


def assert_it_fits(op: Op) -> None:
    compiled = list(measured(op))
    assert compiled
    for kernel, capability, needs in compiled:
        print(f"{kernel} sm_{capability}: {needs}")
        assert needs.registers > 0
        assert needs.spills == 0, f"{kernel} for sm_{capability}: {needs}"
        assert needs.shared <= SHARED_LIMIT[capability], f"{kernel} for sm_{capability}: {needs}"


HALF = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])


@pytest.mark.parametrize("name", attention(torch.float16, 32, 32))
@pytest.mark.parametrize("head", (32, *SITES), ids=lambda head: f"d{head}")
@HALF
def test_compiled_attention_neither_spills_nor_overflows(
    dtype: torch.dtype, head: int, name: str
) -> None:
    assert_it_fits(attention(dtype, head, SITES.get(head, 256))[name])


@pytest.mark.parametrize("name", layers(torch.float16, 64))
@pytest.mark.parametrize("channels", LAYERS)
@HALF
def test_compiled_layers_neither_spill_nor_overflow(
    dtype: torch.dtype, channels: int, name: str
) -> None:
    assert_it_fits(layers(dtype, channels)[name])


def main() -> None:
    """Print the tables of docs/kernels.md for the dtypes named in the arguments."""
    dtypes = [getattr(torch, name) for name in sys.argv[1:]]
    columns = "registers sm_80 / sm_90 | bytes shared | bytes spilled"
    print(f"| d | op | kernel | {columns} |\n|---|---|---|---|---|---|")
    for head in (32, *SITES):
        for name in attention(torch.float16, 32, 32):
            ops = [attention(dtype, head, SITES.get(head, 256))[name] for dtype in dtypes]
            for kernel, needs in most(ops):
                print(f"| {head} | {name} | `{kernel}` | {needs} |", flush=True)
    print(f"\n| kernel | {columns} |\n|---|---|---|---|")
    ops = [op for dtype in dtypes for channels in LAYERS for op in layers(dtype, channels).values()]
    for kernel, needs in most(ops):
        print(f"| `{kernel}` | {needs} |")


def most(ops: list[Op]) -> Iterator[tuple[str, str]]:
    """Each kernel of some ops, and in words the most that any of its launches needs."""
    found: dict[str, dict[int, list[Resources]]] = {}
    for op in ops:
        for kernel, capability, needs in measured(op):
            found.setdefault(kernel, {}).setdefault(capability, []).append(needs)
    for kernel, by_capability in found.items():
        yield (
            kernel,
            " | ".join(
                " / ".join(
                    str(max(getattr(needs, name) for needs in each))
                    for each in by_capability.values()
                )
                for name in ("registers", "shared", "spills")
            ),
        )


if __name__ == "__main__":
    main()
