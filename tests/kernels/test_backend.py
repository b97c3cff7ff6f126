"""Who computes is an argument: named, checked, and never changed behind one's back."""

import pytest
import torch
from nti.kernels.backend import resolve_backend
from nti.kernels.cfg_attention import cfg_attention
from nti.kernels.self_attention import self_attention

from nti.networks.attention import CrossAttention, SelfAttention, set_backend
from nti.networks.frozen import FeedForward, GroupNorm

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def an_ampere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (8, 6))


@pytest.mark.parametrize(
    ("device", "dtype", "chosen"),
    [
        (CPU, torch.float32, "reference"),
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
    q = torch.randn(1, 2, 4, 16)
    for op in (self_attention, cfg_attention):
        with pytest.raises(ValueError, match="device: got 'cpu'"):
            op(q, q, q, backend="triton")
        with pytest.raises(ValueError, match=r"dtype: got torch\.float64"):
            op(q.double(), q.double(), q.double(), backend="triton")


def test_an_unknown_backend_is_refused() -> None:
    q = torch.randn(1, 2, 4, 16)
    for op in (self_attention, cfg_attention):
        with pytest.raises(ValueError, match="backend: got 'cuda'"):
            op(q, q, q, backend="cuda")
    with pytest.raises(ValueError, match="backend: got 'cuda'"):
        resolve_backend("cuda", CPU, torch.float32)
    with pytest.raises(ValueError, match="backend: got 'auto'"):
        set_backend(torch.nn.Identity(), "auto")


def test_the_backend_reaches_every_layer_that_has_a_kernel() -> None:
    network = torch.nn.Sequential(
        SelfAttention(32, 2, inject=True),
        torch.nn.Sequential(CrossAttention(32, 24, 2, maps_words=True)),
        GroupNorm(2, 4),
        FeedForward(32),
    ).requires_grad_(False)
    set_backend(network, "triton")
    norm, tokens = torch.nn.LayerNorm(32), torch.randn(1, 4, 32)
    for run in (
        lambda: network[0](tokens, norm, None),
        lambda: network[1][0](tokens, norm, torch.randn(1, 77, 24), None),
        lambda: network[2](torch.randn(1, 4, 2, 2)),
        lambda: network[3](tokens, norm),
    ):
        with pytest.raises(ValueError, match="device: got 'cpu'"):
            run()
