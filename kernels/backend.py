"""Who computes an op: PyTorch, oneDNN or Triton, by argument alone."""

from importlib import import_module, util

import torch
from torch import Tensor

__all__ = [
    "BACKENDS",
    "KERNELS",
    "check_backend",
    "check_device_and_dtype",
    "check_inputs",
    "has_onednn",
    "provides",
    "resolve_backend",
    "without_fusion",
]

KERNELS = {
    "reference": frozenset[str](),
    "onednn": frozenset(
        {"linear", "conv2d", "feed_forward", "projected_attention", "upsampled_conv2d"}
    ),
    "onednn-products": frozenset({"linear", "conv2d", "feed_forward"}),
    "triton": frozenset({"cfg_attention", "group_norm", "geglu"}),
    "triton-attention": frozenset({"cfg_attention"}),
}
"""The ops that a backend has a kernel of its own for. Every other op is the reference's.

`onednn-products` and `triton-attention` are for graphs: a package multiplies by oneDNN with weights
alone (`nti.export`), and torch.compile fuses the rest itself (`without_fusion`).
"""

BACKENDS = tuple(KERNELS)

HALF = (torch.float16, torch.bfloat16)
DTYPES = (*HALF, torch.float32)
"""What the Triton kernels take. float32 is multiplied in full, without tensor cores: right, and
slower than the reference."""
CAPABILITY = (8, 0)
"""The first whose blocks have the shared memory that the tiles take."""
MAX_HEAD = 256
"""The widest head whose accumulators fit in registers."""
MAX_KEYS = 128
"""The longest prompt in tokens whose keys fit in one tile; CLIP's has 77."""


def check_backend(backend: str) -> None:
    """Raise ValueError for a backend that is none of `BACKENDS`."""
    if backend not in KERNELS:
        raise ValueError(f"backend: got {backend!r}, expected one of {', '.join(BACKENDS)}")


def provides(backend: str, op: str) -> bool:
    """Whether a backend has its own kernel of an op; ValueError for an unknown backend."""
    check_backend(backend)
    return op in KERNELS[backend]


def without_fusion(backend: str) -> str:
    """Return the backend for a step that torch.compile compiles.

    The compiler fuses norms, gates and products by itself, better than around a foreign kernel. It
    has no attention of its own, so Triton's cross-attention stays.
    """
    return "triton-attention" if provides(backend, "cfg_attention") else "reference"


def resolve_backend(backend: str, device: torch.device, dtype: torch.dtype) -> str:
    """Turn `auto` or a backend's name into who computes on this device in this dtype.

    `auto` is Triton where its kernels are meant to run, for half precision on CUDA from compute
    capability 8.0 on; oneDNN for float32 on a CPU; else the reference.
    Raises ValueError for an unknown name, and for a backend where it cannot be had.
    """
    if backend == "auto":
        backend = _best(device, dtype)
    if backend not in KERNELS:
        raise ValueError(f"backend: got {backend!r}, expected one of auto, {', '.join(BACKENDS)}")
    if provides(backend, "linear") and not has_onednn(device, dtype):
        raise ValueError(
            f"backend: got {backend!r} for {dtype} on {device}, but it multiplies float32 on a CPU,"
            " by a PyTorch that was built with it: use backend='reference', or load the model so"
        )
    if provides(backend, "cfg_attention"):
        if util.find_spec("triton") is None:
            raise ValueError(
                f"backend: got {backend!r}, but triton is not installed:"
                " install it (Linux only) or choose 'reference'"
            )
        check_device_and_dtype(device, dtype)
        # Now, not at the first call, which may be inside a graph that is being captured.
        for op in KERNELS[backend]:
            import_module(f"nti.kernels.{op}_triton")
    return backend


def _best(device: torch.device, dtype: torch.dtype) -> str:
    if has_onednn(device, dtype):
        return "onednn"
    fits = device.type == "cuda" and torch.cuda.get_device_capability(device) >= CAPABILITY
    found = util.find_spec("triton") is not None
    return "triton" if fits and found and dtype in HALF else "reference"


def has_onednn(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies there: float32 on a CPU that PyTorch was built with it for."""
    if device.type != "cpu" or dtype != torch.float32:
        return False
    return hasattr(torch.ops.mkldnn, "_linear_pointwise") and bool(torch.backends.mkldnn.enabled)


def check_inputs(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise ValueError unless the Triton kernels take q (B, heads, L, d), k and v (B, heads, S, d).

    They take float16, bfloat16 and float32, heads up to 256 wide and up to 128 keys, on a CUDA
    device or under Triton's interpreter.
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
    if k.shape[2] > MAX_KEYS:
        raise ValueError(
            f"keys: got {k.shape[2]}, expected at most {MAX_KEYS}: use backend='reference'"
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
