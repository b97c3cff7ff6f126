"""Who computes is an argument: named, checked, and never changed behind one's back."""

import pytest
import torch
from nti.kernels.backend import BACKENDS, resolve_backend, without_fusion
from nti.kernels.cfg_attention import cfg_attention

from nti.networks.unet import UNet
from tiny import TINY

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def an_ampere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (8, 6))


@pytest.mark.parametrize(
    ("device", "dtype", "chosen"),
    [
        (CPU, torch.float32, "onednn"),
        (CPU, torch.float64, "reference"),
        (CPU, torch.float16, "reference"),
        (CUDA, torch.float32, "reference"),
        (CUDA, torch.float64, "reference"),
        (CUDA, torch.float16, "triton"),
        (CUDA, torch.bfloat16, "triton"),
    ],
    ids=lambda x: str(x).removeprefix("torch."),
)
def test_auto_chooses_triton_for_half_precision_on_cuda(
    device: torch.device, dtype: torch.dtype, chosen: str
) -> None:
    assert resolve_backend("auto", device, dtype) == chosen


def test_auto_does_not_choose_triton_where_shared_memory_is_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (7, 5))
    assert resolve_backend("auto", CUDA, torch.float16) == "reference"


def test_reference_is_never_replaced() -> None:
    assert resolve_backend("reference", CUDA, torch.float16) == "reference"


def test_without_triton_auto_is_the_reference_and_triton_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nti.kernels.backend.util.find_spec", lambda name: None)
    assert resolve_backend("auto", CUDA, torch.float16) == "reference"
    with pytest.raises(ValueError, match="triton is not installed"):
        resolve_backend("triton", CUDA, torch.float16)


def test_triton_is_refused_on_the_cpu_and_in_float64() -> None:
    with pytest.raises(ValueError, match="device: got 'cpu'"):
        resolve_backend("triton", CPU, torch.float32)
    with pytest.raises(ValueError, match=r"dtype: got torch\.float64"):
        resolve_backend("triton", CUDA, torch.float64)
    q, words = torch.randn(1, 2, 4, 16), torch.ones(1, 4, 1)
    with pytest.raises(ValueError, match="device: got 'cpu'"):
        cfg_attention(q, q, q, None, words, backend="triton")
    with pytest.raises(ValueError, match=r"dtype: got torch\.float64"):
        cfg_attention(q.double(), q.double(), q.double(), None, words, backend="triton")


def test_an_unknown_backend_is_refused() -> None:
    q = torch.randn(1, 2, 4, 16)
    with pytest.raises(ValueError, match="backend: got 'cuda'"):
        cfg_attention(q, q, q, backend="cuda")
    with pytest.raises(ValueError, match="backend: got 'cuda'"):
        resolve_backend("cuda", CPU, torch.float32)
    with pytest.raises(ValueError, match="backend: got 'auto'"):
        UNet(TINY.unet, backend="auto")


def test_onednn_is_refused_where_it_does_not_multiply(monkeypatch: pytest.MonkeyPatch) -> None:
    for device, dtype in ((CUDA, torch.float32), (CPU, torch.float64)):
        with pytest.raises(ValueError, match="backend: got 'onednn' for"):
            resolve_backend("onednn", device, dtype)
    assert resolve_backend("onednn", CPU, torch.float32) == "onednn"
    with torch.backends.mkldnn.flags(enabled=False):
        assert resolve_backend("auto", CPU, torch.float32) == "reference"
        with pytest.raises(ValueError, match="backend: got 'onednn' for"):
            resolve_backend("onednn", CPU, torch.float32)


def test_the_backend_reaches_every_layer_that_has_a_kernel() -> None:
    """Of a UNet, by hand: each kind of layer has the backend that the UNet was built with."""
    kinds = {"Linear", "Conv2d", "GroupNorm", "GroupNormSiLU", "FeedForward"}
    kinds |= {"SelfAttention", "CrossAttention"}
    for backend in BACKENDS:
        unet = UNet(TINY.unet, backend=backend)
        found = {type(m).__name__: m.backend for m in unet.modules() if hasattr(m, "backend")}
        assert found == dict.fromkeys(kinds | {"UNet"}, backend)


def test_another_backend_shares_the_weights() -> None:
    unet = UNet(TINY.unet).requires_grad_(False)
    other = unet.with_backend("onednn")
    assert (unet.backend, other.backend) == ("reference", "onednn")
    for ours, theirs in zip(unet.parameters(), other.parameters(), strict=True):
        assert ours.data_ptr() == theirs.data_ptr() and not theirs.requires_grad


@pytest.mark.parametrize(
    ("backend", "left"),
    [
        ("reference", "reference"),
        ("onednn", "reference"),
        ("triton", "triton-attention"),
        ("triton-attention", "triton-attention"),
    ],
)
def test_a_compiler_is_left_what_it_fuses(backend: str, left: str) -> None:
    assert without_fusion(backend) == left
