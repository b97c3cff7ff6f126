"""Who computes an op: the reference on PyTorch or the Triton kernel, by argument alone."""

from importlib import import_module, util

import torch
from torch import Tensor

__all__ = [
    "BACKENDS",
    "check_backend",
    "check_device_and_dtype",
    "check_inputs",
    "resolve_backend",
]

BACKENDS = ("reference", "triton")

HALF = (torch.float16, torch.bfloat16)
DTYPES = (*HALF, torch.float32)
"""float32 is multiplied in full, without tensor cores: right, and slower than the reference."""
CAPABILITY = (8, 0)
"""The first whose blocks have the shared memory that the tiles take."""
MAX_HEAD = 256
"""The widest head whose accumulators fit in registers."""


def check_backend(backend: str) -> None:
    """Raise ValueError for a backend that is none of `BACKENDS`."""
    if backend not in BACKENDS:
        raise ValueError(f"backend: got {backend!r}, expected one of {', '.join(BACKENDS)}")


def resolve_backend(backend: str, device: torch.device, dtype: torch.dtype) -> str:
    """Turn `auto`, `reference` or `triton` into who computes on this device in this dtype.

    `auto` is Triton where its kernels are meant to run, for half precision on CUDA from compute
    capability 8.0 on, else the reference.
    Raises ValueError for an unknown name, and for `triton` where it cannot be had.
    """
    if backend == "auto":
        fits = device.type == "cuda" and torch.cuda.get_device_capability(device) >= CAPABILITY
        found = util.find_spec("triton") is not None
        backend = "triton" if fits and found and dtype in HALF else "reference"
    if backend not in BACKENDS:
        raise ValueError(f"backend: got {backend!r}, expected one of auto, {', '.join(BACKENDS)}")
    if backend == "triton":
        if util.find_spec("triton") is None:
            raise ValueError(
                "backend: got 'triton', but triton is not installed:"
                " install it (Linux only) or choose 'reference'"
            )
        check_device_and_dtype(device, dtype)
        # Now, not at the first call, which may be inside a graph that is being captured.
        for op in ("self_attention", "cfg_attention", "group_norm", "geglu"):
            import_module(f"nti.kernels.{op}_triton")
    return backend


def check_inputs(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise ValueError unless the Triton kernels take q (B, heads, L, d), k and v (B, heads, S, d).

    They take float16, bfloat16 and float32, heads up to 256 wide, on a CUDA device or under
    Triton's interpreter.
    """
    check_device_and_dtype(q.device, q.dtype)
    if not (q.dtype == k.dtype == v.dtype and q.device == k.device == v.device):
        raise ValueError(
            f"q, k, v: got {q.dtype} on {q.device}, {k.dtype} on {k.device}, {v.dtype} on"
            f" {v.device}, expected one dtype on one device"
        )
    if k.shape != v.shape or q.ndim != 4 or q.shape[:2] + q.shape[3:] != k.shape[:2] + k.shape[3:]:
        raise ValueError(
            f"q, k, v: got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}, expected"
            " (B, heads, L, d), (B, heads, S, d), (B, heads, S, d)"
        )
    if q.shape[-1] > MAX_HEAD:
        raise ValueError(
            f"head size: got {q.shape[-1]}, expected at most {MAX_HEAD}: use backend='reference'"
        )


def check_device_and_dtype(device: torch.device, dtype: torch.dtype) -> None:
    """Raise ValueError unless the Triton kernels run there and take that.

    On the meta device, where nothing runs, shapes are told.
    """
    if dtype not in DTYPES:
        raise ValueError(
            f"dtype: got {dtype}, but the Triton kernels accumulate in float32: use"
            " backend='reference', or float16, bfloat16 or float32"
        )
    if device.type not in ("cuda", "meta"):
        from nti.kernels.tiles import INTERPRETED

        if not INTERPRETED:
            raise ValueError(
                f"device: got {device.type!r}, but the Triton kernels run on CUDA: use"
                " backend='reference' (TRITON_INTERPRET=1 before the start interprets them)"
            )
