"""Section `roofline`: what the machine reaches in a large product, and how much work is needed.

Shares in the report are of the fastest product in the same dtype.
"""

from functools import partial

import torch
from nti.kernels.linear import is_onednn, linear
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nti.config import ModelConfig
from peers import empty_unet
from rows import Row, make_row
from timing import interleaved

__all__ = ["iteration_tflop", "products"]


def products(repeats: int, dtype: torch.dtype, device: torch.device) -> list[Row]:
    """Time a square product by PyTorch, and by oneDNN where frozen layers use it."""
    n = 4096 if device.type == "cpu" else 8192
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    calls = {"PyTorch": partial(torch.mm, a, b)}
    if is_onednn(a):
        calls["oneDNN"] = partial(linear, a, b)
    return [
        make_row(
            "roofline", name, f"a product of {n} x {n}", dtype=dtype, milliseconds=times,
            tflop=2 * n**3 / 1e12,
        )
        for name, times in interleaved(calls, max(repeats, 5)).items()
    ]  # fmt: skip


def iteration_tflop(config: ModelConfig, side: int) -> float:
    """Of an inner iteration on an image of `side` pixels: forward, and backward to the embedding.

    Counted on the peer's UNet without weights; attention as its two products, nothing twice.
    """
    n = side // config.vae.downsampling
    unet = empty_unet(config.unet).requires_grad_(False)
    context = config.text.context_length, config.unet.context_dim
    with (
        torch.device("meta"),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        uncond = torch.empty(1, *context, requires_grad=True)
        latent, timestep = torch.empty(1, config.unet.latent_channels, n, n), torch.empty(1)
        unet(latent, timestep, encoder_hidden_states=uncond).sample.sum().backward()
    return counter.get_total_flops() / 1e12
