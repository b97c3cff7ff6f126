"""What the compiler makes of the shipped launches for GPUs that are not here: no register may spill
and shared memory must fit. `docs/kernels.md` holds the table.
"""

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

pytest.importorskip("triton")
from nti.kernels import group_norm_triton
from nti.kernels.cfg_attention_triton import cfg_attention_forward
from nti.kernels.geglu_triton import geglu_backward, geglu_forward
from nti.kernels.group_norm_triton import group_norm_backward, group_norm_forward

from ahead_of_time import Resources, compile_for, launches_of, parsing_one_at_a_time
from nti.config import SD_V1, UNetConfig
from nti.model import locate
from nti.networks.layers import GroupNorm
from nti.networks.unet import UNet

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


def attention(dtype: torch.dtype, head: int, length: int) -> dict[str, Op]:
    """The op of cross-attention as the UNet calls it, on memory that is never read."""

    def empty(length: int) -> torch.Tensor:
        return torch.empty(3, length, 8, head, dtype=dtype).transpose(1, 2)

    q, k = empty(length), empty(77)
    fold = (torch.empty(1, dtype=torch.int64), torch.empty(1, 77, 77), torch.empty(1, 77))
    words = torch.empty(2, 77, 3)
    return {
        "fold": lambda: cfg_attention_forward(q, k, k, *fold, None),
        "words": lambda: cfg_attention_forward(q, k, k, None, None, None, words),
        "fold-words": lambda: cfg_attention_forward(q, k, k, *fold, words),
    }


def norms(config: UNetConfig, side: int) -> set[tuple[int, int, int, bool]]:
    """Channels, groups, side of the map, and whether SiLU follows, of all norms of a UNet."""
    found = set()

    def note(norm: nn.Module, given: tuple[torch.Tensor], _: torch.Tensor) -> None:
        assert isinstance(norm, GroupNorm)
        found.add((norm.num_channels, norm.num_groups, given[0].shape[-1], norm.silu))

    with torch.device("meta"):
        unet = UNet(config).requires_grad_(False)
        for module in unet.modules():
            if isinstance(module, GroupNorm):
                module.register_forward_hook(note)
        latent, context = torch.empty(1, 4, side, side), torch.empty(1, 77, config.context_dim)
        unet(latent, torch.empty(1), context)
    return found


SD_NORMS = norms(SD_V1.unet, 64)
NORMS = sorted(SD_NORMS | norms(locate(None)[1].unet, 16))
"""Of Stable Diffusion v1 at 512 px, and of the embedded model."""


def distinct(sites: list[tuple[int, int, int, bool]]) -> list[tuple[int, int, int, bool]]:
    """Of sites that take the same lines of the kernels in groups as wide, the largest map.

    Its tile holds the most positions, or a group has the most parts.
    """
    largest = {}
    for channels, groups, side, silu in sorted(sites, key=lambda site: site[2]):
        x = torch.empty(1, channels, side, side, device="meta")
        divided = group_norm_triton._divide(x, groups).parts is not None
        largest[channels // groups, divided, silu] = channels, groups, side, silu
    return list(largest.values())


WIDTHS = {1280: 4096, 2560: 1024, 5120: 256, 256: 256}
"""Positions by the width of a feed-forward, the last the embedded model's."""


def norm(dtype: torch.dtype, channels: int, groups: int, side: int, silu: bool) -> dict[str, Op]:
    """One norm's ops, likewise."""
    x = torch.empty(3, channels, side, side, dtype=dtype).to(memory_format=torch.channels_last)
    weight, stats = x.new_empty(channels), torch.empty(3, groups, 2)
    return {
        "forward": lambda: group_norm_forward(x, weight, weight, groups, 1e-5, silu),
        "backward": lambda: group_norm_backward(x, x, weight, weight, stats, silu),
    }


def gate(dtype: torch.dtype, width: int) -> dict[str, Op]:
    """The ops of one feed-forward's gate, likewise."""
    x, d_out = (torch.empty(3, WIDTHS[width], n * width, dtype=dtype) for n in (2, 1))
    return {"forward": lambda: geglu_forward(x), "backward": lambda: geglu_backward(d_out, x)}


def measured(op: Op) -> Iterator[tuple[str, int, Resources]]:
    """Each kernel that an op launches, compiled for each capability at the same time."""
    jobs = [(launch, capability) for launch in launches_of(op) for capability in SHARED_LIMIT]
    with parsing_one_at_a_time(), ThreadPoolExecutor(os.cpu_count()) as pool:
        for job, needs in zip(jobs, pool.map(lambda job: compile_for(*job), jobs), strict=True):
            yield job[0].kernel.__name__, job[1], needs


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


@pytest.mark.parametrize("site", distinct(NORMS), ids=lambda site: "-".join(map(str, site)))
@HALF
def test_compiled_norms_neither_spill_nor_overflow(
    dtype: torch.dtype, site: tuple[int, int, int, bool]
) -> None:
    for op in norm(dtype, *site).values():
        assert_it_fits(op)


@pytest.mark.parametrize("width", WIDTHS)
@HALF
def test_compiled_gates_neither_spill_nor_overflow(dtype: torch.dtype, width: int) -> None:
    for op in gate(dtype, width).values():
        assert_it_fits(op)


def test_all_norms_were_found() -> None:
    assert {channels for channels, *_ in SD_NORMS} == {320, 640, 960, 1280, 1920, 2560}
    assert {side for _, _, side, _ in SD_NORMS} == {64, 32, 16, 8}


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
    sites = [norm(dtype, *site) for dtype in dtypes for site in NORMS]
    sites += [gate(dtype, width) for dtype in dtypes for width in WIDTHS]
    for kernel, needs in most([op for ops in sites for op in ops.values()]):
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
