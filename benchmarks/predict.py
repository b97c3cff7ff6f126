"""What a step takes at least on a GPU: FLOPs and bytes of each op, counted on no device at all.

    python benchmarks/predict.py            count, for benchmarks/results/predicted.csv
    python benchmarks/predict.py report     the tables of docs/performance.md

An op takes at least its FLOPs at the GPU's peak, or its bytes at the bandwidth of its memory: its
inputs are read once and its outputs written once, its weights among the inputs. FLOPs are those of
products, convolutions and PyTorch's attention. A convolution's layout is not known without a
device, so copies from one layout to another are left out. The counts are of
Stable Diffusion v1's size at 512 px in float16, with the Triton kernels. The report puts the times
that `profile_step` measured beside them, op by op.
"""

import argparse
import csv
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from nti.config import SD_V1
from nti.export.functions import functions_of
from nti.model import StableDiffusion, skeletons
from rows import make_row

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "performance.md"
PLACE = re.compile(r"(<!-- predicted -->\n).*?(<!-- end predicted -->)", re.DOTALL)
SIDE = 512
MEASURED_ON = "H200"


@dataclass(frozen=True)
class GPU:
    """A data sheet's figures: dense float16 products with sums in float32, and memory."""

    tflops: float
    terabytes: float
    """A second."""


GPUS = {
    "H100": GPU(989, 3.35),
    "H200": GPU(989, 4.8),
    "A100": GPU(312, 2.04),
    "RTX 4090": GPU(165, 1.01),
}
"""H100 and H200 as SXM, A100 as SXM with 80 GB."""

STEPS = {"iteration": "an inner iteration", "controlled": "a step of an edit", "noise": "a forward"}
"""Functions of `nti.export.functions`."""
JOBS = {
    "an inversion, 50 steps and 500 iterations": {"iteration": 500, "noise": 150},
    "an edit of one prompt, 50 steps": {"controlled": 50},
}
"""How often each calls what, encoding and decoding left out."""


@dataclass
class Op:
    """All calls of an op."""

    calls: int = 0
    flops: float = 0.0
    bytes: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(GPUS, 0.0))
    """At least, by GPU: the sum over the calls."""


aten = torch.ops.aten
ALLOCATIONS = (
    aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided
)  # fmt: skip
"""Memory that another op fills."""
SHAPE_ALONE = (
    aten.copy_, aten.fill_, aten.zero_, aten.zeros_like, aten.ones_like, aten.full_like,
    aten.new_zeros, aten.new_ones, aten.new_full,
)  # fmt: skip
"""Ops whose first argument is not read."""


class Counted(TorchDispatchMode):
    """Adds up what each op computes, reads and writes."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: dict[str, Op] = defaultdict(Op)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        given, made = _tensors((args, kwargs)), _tensors(out)
        places = {x.untyped_storage()._cdata for x in given}
        in_place = func._schema.is_mutable
        written = [x for x in made if in_place or x.untyped_storage()._cdata not in places]
        if not written or packet in ALLOCATIONS:
            return out  # a view, or memory that another op fills
        unread = 0 if packet in SHAPE_ALONE else None
        if packet is aten.convolution_backward and not args[10][1]:
            unread = 1  # the input, which the gradient to the weights alone would need
        read = [x for x in given if unread is None or x is not args[unread]]
        flop = flop_registry.get(packet)
        self._add(
            str(packet).replace(".", "::"),
            float(flop(*args, **kwargs, out_val=out)) if flop else 0.0,
            sum(_nbytes(x) for x in (*read, *written)),
        )
        if packet is aten.convolution and args[2] is not None:
            self._add("aten::add", 0.0, 2 * _nbytes(out))  # cuDNN leaves the bias to it
        return out

    def _add(self, name: str, flops: float, moved: float) -> None:
        op = self.ops[name]
        op.calls, op.flops, op.bytes = op.calls + 1, op.flops + flops, op.bytes + moved
        for gpu, figures in GPUS.items():
            op.seconds[gpu] += max(flops / figures.tflops, moved / figures.terabytes) / 1e12


def _tensors(tree: object) -> list[Tensor]:
    """Return the tensors in a tree, each once."""
    return list({id(x): x for x in tree_leaves(tree) if isinstance(x, Tensor)}.values())


def _nbytes(x: Tensor) -> float:
    """Return the bytes of a tensor; of one that is expanded, those that there are."""
    return float(min(x.nbytes, x.untyped_storage().nbytes()))


class FusedAttention(TorchFunctionMode):
    """Takes PyTorch's attention for the fused one of a GPU, which no other device chooses."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention and len(args) == 3 and not kwargs:
            return aten._scaled_dot_product_flash_attention(*args)[0]
        return func(*args, **(kwargs or {}))


def count() -> Iterator[tuple[str, dict[str, Op]]]:
    """Yield the ops of each of `STEPS`, for one image and one edit."""
    with torch.device("meta"):
        networks = skeletons(SD_V1, backend="triton")
        networks["unet"].to(memory_format=torch.channels_last)
    for network in networks.values():
        network.half().requires_grad_(False)
    model = StableDiffusion(SD_V1, tokenizer=None, **networks)  # type: ignore[arg-type]
    for function in functions_of(model, (SIDE, SIDE), 1, 1, backend="triton"):
        if function.name in STEPS:
            with FusedAttention(), Counted() as counted:
                function.module(*function.inputs.values())
            yield function.name, counted.ops


NAMES = {"aten::cudnn_convolution": "aten::convolution", "aten::add_": "aten::add"}
"""Of the profile's ops, those that are counted under another name."""


def table(title: str, ops: dict[str, dict[str, float]], profile: dict[str, float]) -> Iterator[str]:
    """Yield the lines of one step: an op a line, those that take longest first, and the sum."""
    yield f"| {title} | calls | GFLOP | GiB | {' | '.join(GPUS)} | measured | times as long |"
    yield f"|---|{'---:|' * (5 + len(GPUS))}"
    order = sorted(ops, key=lambda name: -ops[name][MEASURED_ON])
    large = [name for name in order if ops[name][MEASURED_ON] >= 0.01 or name in profile]
    rest = {key: sum(ops[n][key] for n in order if n not in large) for key in ops[order[0]]}
    total = {key: sum(op[key] for op in ops.values()) for key in rest}
    lines = {**{name: ops[name] for name in large}, "the rest": rest, "all": total}
    for name, op in lines.items():
        ms = " | ".join(f"{op[gpu]:.2f}" for gpu in GPUS)
        measured = profile.get(name)
        ratio = f"{measured:.2f} | {measured / op[MEASURED_ON]:.1f}" if measured else " | "
        yield (
            (
                f"| `{name}` | {op['calls']:,.0f} | {op['gflop']:,.0f} | {op['gib']:.2f} | {ms} |"
                f" {ratio} |"
            )
            .replace("`the rest`", "the rest")
            .replace("`all`", "**all**")
        )


def report() -> None:
    """Write the tables."""
    with (RESULTS / "predicted.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (RESULTS / "profile.csv").open(newline="") as file:
        profiled = list(csv.DictReader(file))
    profile: dict[str, float] = defaultdict(float)
    for row in profiled:
        profile[NAMES.get(row["op"], row["op"])] += float(row["ms"])
    steps = {
        case: {
            row["op"]: {
                k: float(v) for k, v in row.items() if k not in ("op", "case", "commit", "dirty")
            }
            for row in rows
            if row["case"] == case
        }
        for case in STEPS
    }
    lines = [f"| at least, s | {' | '.join(GPUS)} |", f"|---|{'---:|' * len(GPUS)}"]
    for job, calls in JOBS.items():
        each = (
            sum(n * op[gpu] for case, n in calls.items() for op in steps[case].values()) / 1e3
            for gpu in GPUS
        )
        lines.append(f"| {job} | {' | '.join(f'{seconds:.2f}' for seconds in each)} |")
    lines.append("")
    for case, measured in (("iteration", profile), ("controlled", {})):
        lines += [*table(f"{STEPS[case]}, ms", steps[case], measured), ""]
    lines += [
        f"Counted at commit {rows[0]['commit']}; measured on an {profiled[0]['device']}, torch"
        f" {profiled[0]['torch']}, commit {profiled[0]['commit']}.",
        "",
    ]
    text = "\n".join(lines)
    PAGE.write_text(PLACE.sub(lambda m: m[1] + text + m[2], PAGE.read_text("utf-8")), "utf-8")


def main() -> None:
    """Count, or write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=["count", "report"], default="count")
    if parser.parse_args().what == "report":
        report()
        return
    where = make_row("predict", "", "")
    counted = list(count())
    with (RESULTS / "predicted.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["op", "case", "calls", "gflop", "gib", *GPUS, "commit", "dirty"])
        for case, ops in counted:
            for name, op in sorted(ops.items()):
                milliseconds = [f"{1e3 * op.seconds[gpu]:.5f}" for gpu in GPUS]
                writer.writerow(
                    [name, case, op.calls, f"{op.flops / 1e9:.4f}", f"{op.bytes / 2**30:.6f}",
                     *milliseconds, where.commit, where.dirty]
                )  # fmt: skip


if __name__ == "__main__":
    main()
