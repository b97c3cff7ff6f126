"""Section `kernels`: the Triton attention against the reference on PyTorch's fused attention, in
the shapes of Stable Diffusion v1 on a 512 px image. Only on CUDA.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from nti.kernels.cfg_attention import Fold, cfg_attention
from nti.kernels.self_attention import self_attention
from torch import Tensor

from nti.cuda_graph import record
from rows import Row, make_row
from timing import interleaved

__all__ = ["kernels"]

ROWS, HEADS, TOKENS, CALLS = 3, 8, 77, 20
SITES = ((4096, 40), (1024, 80), (256, 160), (64, 160))
"""Positions and head size of each level."""

Inputs = dict[str, Tensor]


def kernels(repeats: int) -> Iterator[list[Row]]:
    """Time forward and backward passes of each op; a row a provider and shape."""
    for length, size in SITES:
        # Products that the result needs: two a row forward, two more for the gradient to q.
        for name, keys, call, products in (
            ("self, forward", length, _self, 2 * ROWS),
            ("self, both passes", length, partial(_backward, _self), 4 * ROWS),
            ("cross, forward", TOKENS, _cross, 2 * ROWS),
            ("cross, both passes", TOKENS, partial(_backward, _cross), 4 * ROWS),
            ("cross with an edit", TOKENS, _edited, 2 * ROWS + 2),
        ):
            tflop = products * 2 * HEADS * length * keys * size / 1e12
            yield _compare(name, call, _inputs(length, keys, size), tflop, repeats)


def _inputs(length: int, keys: int, size: int) -> Inputs:
    g = torch.Generator("cuda").manual_seed(0)
    shapes = {"q": length, "k": keys, "v": keys, "cotangent": length}
    return {
        # As the projections leave them.
        name: torch.randn(
            ROWS, n, HEADS, size, generator=g, device="cuda", dtype=torch.float16
        ).transpose(1, 2)
        for name, n in shapes.items()
    }


def _self(x: Inputs, backend: str) -> Tensor:
    return self_attention(x["q"], x["k"], x["v"], backend=backend)


def _cross(x: Inputs, backend: str) -> Tensor:
    return cfg_attention(x["q"], x["k"], x["v"], backend=backend)[0]


def _edited(x: Inputs, backend: str) -> Tensor:
    """A replayed edit's three rows, one of them edited, with the maps of two words."""
    like = x["q"]
    mix = torch.eye(TOKENS, device=like.device, dtype=torch.float32)[None]
    fold = Fold(torch.ones(1, device=like.device, dtype=torch.int64), 0.5 * mix, 0.5 * mix[:, 0])
    words = torch.eye(TOKENS, 2, device=like.device).expand(2, -1, -1)
    return cfg_attention(x["q"], x["k"], x["v"], fold, words, backend=backend)[0]


def _backward(forward: Callable[[Inputs, str], Tensor], x: Inputs, backend: str) -> Tensor:
    q = x["q"].detach().requires_grad_()
    out = forward({**x, "q": q}, backend)
    return torch.autograd.grad(out, q, x["cotangent"])[0]


def _compare(
    name: str, call: Callable[[Inputs, str], Tensor], x: Inputs, tflop: float, repeats: int
) -> list[Row]:
    exact = call({key: value.float() for key, value in x.items()}, "reference")
    errors = {
        backend: float((call(x, backend).float() - exact).norm() / exact.norm())
        for backend in ("reference", "triton")
    }
    if errors["triton"] > 3 * errors["reference"]:
        raise RuntimeError(f"{name}: got errors {errors}, expected at most 3 times the reference's")

    def several(backend: str) -> Tensor:
        for _ in range(CALLS):
            out = call(x, backend)
        return out

    # Recorded, as Python takes longer to launch a kernel than the kernel to run.
    replays = {backend: record(partial(several, backend), ())[0] for backend in errors}
    times = interleaved(replays, repeats, warmup=3)
    length, size = x["q"].shape[2:]
    return [
        make_row(
            "kernels", backend, f"{name}, {length} positions, d {size}", dtype=x["q"].dtype,
            milliseconds=[t / CALLS for t in times[backend]], quality=errors[backend],
            unit="relative error to float32", tflop=tflop,
        )
        for backend in errors
    ]  # fmt: skip
