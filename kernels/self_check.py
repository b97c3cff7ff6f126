"""Small calls of a backend's kernels against the reference, before anybody relies on them.

A kernel that was compiled for a device that its authors never had may be wrong there. Each op of a
backend is called once, forward and backward, on a tensor of random numbers.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial

import torch
from nti.kernels.backend import KERNELS
from nti.kernels.cfg_attention import Fold, cfg_attention
from nti.kernels.geglu import geglu
from nti.kernels.group_norm import group_norm
from torch import Tensor

__all__ = ["failures", "relative_error"]

BOUND = 0.02
"""||a - b|| / ||b|| that is let pass. What bfloat16 rounds away is near 0.004; a kernel that is
wrong is off by 0.1 or more."""

Op = Callable[..., Tensor]


@cache
@torch.inference_mode(mode=False)  # gradients are checked, whatever mode the caller is in
def failures(backend: str, device: torch.device, dtype: torch.dtype) -> tuple[str, ...]:
    """Return what is wrong with a backend's kernels there, empty where nothing is.

    Each entry names the check and the error that it found, or the exception that it met. The result
    is remembered for the process.
    """
    found = []
    for op, checks in CHECKS.items():
        if op in KERNELS[backend]:
            for name, check in checks.items():
                try:
                    error = check(backend, device, dtype)
                # Whatever a compiler or a driver raises is what this is here to find.
                except Exception as trouble:
                    found.append(f"{name}: {type(trouble).__name__}: {trouble}")
                else:
                    if not error <= BOUND:
                        found.append(f"{name}: a relative error of {error:.2g}")
    return tuple(found)


def relative_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest ||a - b|| / ||b|| of tensors; not finite where one of them is not."""
    errors = [
        (a.double() - b.double()).norm() / b.double().norm()
        for a, b in zip(found, expected, strict=True)
    ]
    return float(torch.stack(errors).max())


def _numbers(device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor]:
    """Random tensors, the same in every process."""
    g = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=g).to(device, dtype)


def _with_gradients(op: Op, inputs: Sequence[Tensor], cotangent: Tensor) -> list[Tensor]:
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in inputs]
        out = op(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, cotangent.to(out.dtype))]


def _compare(op: Op, backend: str, inputs: Sequence[Tensor], cotangent: Tensor) -> float:
    """Return the error of an op and its gradients, from the reference in float32."""
    exact = _with_gradients(
        partial(op, backend="reference"), [x.float() for x in inputs], cotangent.float()
    )
    return relative_error(_with_gradients(partial(op, backend=backend), inputs, cotangent), exact)


def _fold(backend: str, device: torch.device, dtype: torch.dtype) -> float:
    draw = _numbers(device, dtype)
    q, k, v = draw(3, 2, 80, 40), draw(3, 2, 77, 40), draw(3, 2, 77, 40)
    exact = _numbers(device, torch.float32)
    rows = torch.ones(1, dtype=torch.int64, device=device)
    fold = Fold(rows, exact(1, 77, 77).abs() / 77, exact(1, 77).abs())
    words = (exact(2, 77, 2) > 1).float()
    found = cfg_attention(q, k, v, fold, words, backend=backend)
    expected = cfg_attention(q.float(), k.float(), v.float(), fold, words)
    return relative_error(*([x for x in each if x is not None] for each in (found, expected)))


def _group_norm(backend: str, device: torch.device, dtype: torch.dtype) -> float:
    draw = _numbers(device, dtype)
    x = (draw(2, 64, 12, 12) + 1).to(memory_format=torch.channels_last)
    weight, bias = draw(64), draw(64)

    def op(x: Tensor, backend: str) -> Tensor:
        w, b = weight.to(x.dtype), bias.to(x.dtype)
        return group_norm(x, w, b, 8, 1e-5, silu=True, backend=backend)

    return _compare(op, backend, [x], draw(2, 64, 12, 12))


def _geglu(backend: str, device: torch.device, dtype: torch.dtype) -> float:
    draw = _numbers(device, dtype)
    return _compare(geglu, backend, [draw(2, 40, 256)], draw(2, 40, 128))


Check = Callable[[str, torch.device, torch.dtype], float]

CHECKS: dict[str, dict[str, Check]] = {
    "cfg_attention": {"the fold and word maps": _fold},
    "group_norm": {"GroupNorm with SiLU": _group_norm},
    "geglu": {"GEGLU": _geglu},
}
"""By op, each by what it is called in a message."""
