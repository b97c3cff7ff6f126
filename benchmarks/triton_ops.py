"""Section `kernels`: each Triton op against its reference on PyTorch, in the shapes of Stable
Diffusion v1 on a 512 px image. Only on CUDA.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from nti.kernels.cfg_attention import Fold, cfg_attention
from nti.kernels.geglu import geglu
from nti.kernels.group_norm import group_norm
from torch import Tensor

from nti.execution.cuda_graph import capture_graph
from rows import Row, make_row
from timing import interleaved

__all__ = ["kernels"]

ROWS, HEADS, TOKENS, CALLS = 3, 8, 77, 20
SITES = ((4096, 40), (1024, 80), (256, 160), (64, 160))
"""Positions and head size of each level."""
NORMS = ((320, 64), (960, 64), (640, 32), (1920, 32), (1280, 16), (2560, 8))
"""Channels and side."""
GEGLUS = ((1280, 4096), (2560, 1024), (5120, 256))
"""Channels and positions."""

Inputs = dict[str, Tensor]
Call = Callable[[Inputs, str], Tensor]


def kernels(repeats: int) -> Iterator[list[Row]]:
    """Time forward and backward passes of each op; a row a provider and shape."""
    edited = partial(_edited, *_edit())
    for length, size in SITES:
        # Two products a row, and two more for the edit.
        tflop = (2 * ROWS + 2) * 2 * HEADS * length * TOKENS * size / 1e12
        case = f"cross with an edit, {length} positions, d {size}"
        yield _compare(case, edited, _heads(length, TOKENS, size), repeats, tflop)
    for channels, side in NORMS:
        shape = (1, side, side, channels)
        drawn = _drawn({"x": shape, "weight": shape[-1:], "bias": shape[-1:], "cotangent": shape})
        # Channels last, as convolutions leave them.
        x = {name: t.permute(0, 3, 1, 2) if t.ndim == 4 else t for name, t in drawn.items()}
        for name, call in (("forward", _norm), ("both passes", partial(_backward, _norm))):
            case = f"norm and SiLU, {name}, {channels} channels, {side} x {side}"
            yield _compare(case, call, x, repeats)
    for width, positions in GEGLUS:
        x = _drawn({"x": (1, positions, 2 * width), "cotangent": (1, positions, width)})
        for name, call in (("forward", _geglu), ("both passes", partial(_backward, _geglu))):
            yield _compare(f"GEGLU, {name}, {width} wide, {positions} positions", call, x, repeats)


def _drawn(shapes: dict[str, tuple[int, ...]]) -> Inputs:
    g = torch.Generator("cuda").manual_seed(0)
    return {
        name: torch.randn(shape, generator=g, device="cuda", dtype=torch.float16)
        for name, shape in shapes.items()
    }


def _heads(length: int, keys: int, size: int) -> Inputs:
    """Queries, keys, values and a cotangent as the projections leave them."""
    lengths = {"q": length, "k": keys, "v": keys, "cotangent": length}
    drawn = _drawn({name: (ROWS, n, HEADS, size) for name, n in lengths.items()})
    return {name: t.transpose(1, 2) for name, t in drawn.items()}


def _edit() -> tuple[Fold, Tensor]:
    """Return the last row as an edit of the one before it, and two words of both."""
    half = 0.5 * torch.eye(TOKENS, device="cuda")[None]
    rows = torch.ones(1, device="cuda", dtype=torch.int64)
    words = torch.eye(TOKENS, 2, device="cuda").repeat(2, 1, 1)
    return Fold(rows, half, half[:, 0]), words


def _edited(fold: Fold, words: Tensor, x: Inputs, backend: str) -> Tensor:
    """A replayed edit's three rows with the words' maps."""
    return cfg_attention(x["q"], x["k"], x["v"], fold, words, backend=backend)[0]


def _norm(x: Inputs, backend: str) -> Tensor:
    return group_norm(x["x"], x["weight"], x["bias"], 32, 1e-5, silu=True, backend=backend)


def _geglu(x: Inputs, backend: str) -> Tensor:
    return geglu(x["x"], backend=backend)


def _backward(forward: Call, x: Inputs, backend: str) -> Tensor:
    """Return the gradient to the first input."""
    first = next(iter(x))
    leaf = x[first].detach().requires_grad_()
    out = forward({**x, first: leaf}, backend)
    return torch.autograd.grad(out, leaf, x["cotangent"])[0]


def _compare(case: str, call: Call, x: Inputs, repeats: int, tflop: float = 0.0) -> list[Row]:
    exact = call({key: value.float() for key, value in x.items()}, "reference")
    errors = {
        backend: float((call(x, backend).float() - exact).norm() / exact.norm())
        for backend in ("reference", "triton")
    }
    if errors["triton"] > 3 * errors["reference"]:
        raise RuntimeError(f"{case}: got errors {errors}, expected at most 3 times the reference's")

    def several(backend: str) -> Tensor:
        for _ in range(CALLS):
            out = call(x, backend)
        return out

    # Captured, as Python takes longer to launch a kernel than the kernel to run.
    replays = {backend: capture_graph(partial(several, backend), ())[0] for backend in errors}
    times = interleaved(replays, repeats, warmup=3)
    return [
        make_row(
            "kernels", backend, case, dtype=torch.float16,
            milliseconds=[t / CALLS for t in times[backend]],
            quality=errors[backend], unit="relative error to float32", tflop=tflop,
        )
        for backend in errors
    ]  # fmt: skip
