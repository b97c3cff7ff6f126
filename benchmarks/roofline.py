"""Section `roofline`: what the machine reaches in a large product, and how much work is needed.

Shares in the report are of the fastest product in the same dtype.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from nti.kernels.backend import has_onednn
from nti.kernels.linear import linear
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nti.config import ModelConfig
from peers import empty_unet
from rows import Row, make_row
from timing import interleaved

__all__ = [
    "counted",
    "forward_tflop",
    "inversion_tflop",
    "iteration_tflop",
    "products",
]


def products(repeats: int, dtype: torch.dtype, device: torch.device) -> list[Row]:
    """Time a square product by PyTorch, and by oneDNN where frozen layers use it."""
    n = 4096 if device.type == "cpu" else 8192
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    calls = {"PyTorch": partial(F.linear, a, b)}
    if has_onednn(device, dtype):
        calls["oneDNN"] = partial(linear, a, b, backend="onednn")
        torch.testing.assert_close(calls["oneDNN"](), F.linear(a, b), rtol=1e-3, atol=1e-3)
    return [
        make_row(
            "roofline", name, f"a product of {n} x {n}", dtype=dtype, milliseconds=times,
            tflop=2 * n**3 / 1e12,
        )
        for name, times in interleaved(calls, max(repeats, 5)).items()
    ]  # fmt: skip


def forward_tflop(config: ModelConfig, side: int) -> float:
    """Of a forward pass of one row; see `iteration_tflop`."""
    unet = empty_unet(config.unet)
    with torch.device("meta"), counted() as counter, torch.no_grad():
        latent, timestep, context = _inputs(config, side)
        unet(latent, timestep, encoder_hidden_states=context)
    return counter.get_total_flops() / 1e12


def inversion_tflop(config: ModelConfig, side: int, steps: int, iterations: float) -> float:
    """Of DDIM inversion and null-text optimization of an image, encoding left out."""
    # A timestep: the pivot's noise, the conditional and the last unconditional noise.
    return steps * 3 * forward_tflop(config, side) + iterations * iteration_tflop(config, side)


def iteration_tflop(config: ModelConfig, side: int) -> float:
    """Of an inner iteration on an image of `side` pixels: forward, and backward to the embedding.

    Counted on the peer's UNet without weights; attention as its products, and nothing twice, so a
    provider that does more (gradients to weights, blocks computed again) is credited with this.
    """
    unet = empty_unet(config.unet).requires_grad_(False)
    with torch.device("meta"), counted() as counter:
        latent, timestep, uncond = _inputs(config, side)
        unet(latent, timestep, encoder_hidden_states=uncond).sample.sum().backward()
    return counter.get_total_flops() / 1e12


@contextmanager
def counted() -> Iterator[FlopCounterMode]:
    """Count the FLOPs of what runs inside, attention as its products."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter


def _inputs(config: ModelConfig, side: int) -> tuple[Tensor, Tensor, Tensor]:
    n = side // config.vae.downsampling
    context = config.text.context_length, config.unet.context_dim
    uncond = torch.empty(1, *context, requires_grad=True)
    return torch.empty(1, config.unet.latent_channels, n, n), torch.empty(1), uncond
