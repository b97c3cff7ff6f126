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

Op = Callable[[], object]


def ops(dtype: torch.dtype, head: int, length: int) -> dict[str, Op]:
    """Every op as the UNet calls it, on memory that is never read."""

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


def measured(dtype: torch.dtype, head: int, name: str) -> Iterator[tuple[str, int, Resources]]:
    for launch in launches_of(ops(dtype, head, SITES.get(head, 256))[name]):
        for capability in SHARED_LIMIT:
            yield launch.kernel.__name__, capability, compile_for(launch, capability)


@pytest.mark.parametrize("name", ops(torch.float16, 32, 32))
@pytest.mark.parametrize("head", (32, *SITES), ids=lambda head: f"d{head}")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
def test_the_compiled_kernels_neither_spill_nor_overflow(
    dtype: torch.dtype, head: int, name: str
) -> None:
    compiled = list(measured(dtype, head, name))
    assert compiled
    for kernel, capability, needs in compiled:
        print(f"{kernel} sm_{capability}: {needs}")
        assert needs.spills == 0, f"{kernel} for sm_{capability}: {needs}"
        assert 0 < needs.shared <= SHARED_LIMIT[capability], (
            f"{kernel} for sm_{capability}: {needs}"
        )


def main() -> None:
    """Print the table of docs/kernels.md for the dtypes named in the arguments."""
    print("| op | kernel | d | dtype | registers sm_80 / sm_90 | KiB shared | bytes spilled |")
    print("|---|---|---|---|---|---|---|")
    for dtype in sys.argv[1:]:
        for head in (32, *SITES):
            for name in ops(torch.float16, 32, 32):
                rows: dict[str, list[Resources]] = {}
                for kernel, _, needs in measured(getattr(torch, dtype), head, name):
                    rows.setdefault(kernel, []).append(needs)
                for kernel, (a, b) in rows.items():
                    print(
                        f"| {name} | `{kernel}` | {head} | {dtype}"
                        f" | {a.registers} / {b.registers}"
                        f" | {a.shared / 1024:.1f} / {b.shared / 1024:.1f}"
                        f" | {a.spills} / {b.spills} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
