"""Section `layers`: choices of the CPU path, a layer at a time, forward and backward, on a UNet's
shapes.

`oneDNN` against `PyTorch`: from how much work on the way to oneDNN pays, which is `WORTH` in
`nti.kernels.linear_onednn`.
`blocks` against `flash`: from what length on the backward pass of attention by blocks of products
pays, which is `LARGE` in `nti.kernels.projected_attention_onednn`.
`one product` against `three`: q, k and v by a matrix of their own each, or by one that holds all
three. `time projections` is what computing them once a timestep would save of an iteration.
"""

from collections.abc import Callable
from functools import partial
from unittest import mock

import torch
from nti.kernels import linear_onednn, projected_attention_onednn
from torch import Tensor, nn

from nti.config import ModelConfig
from nti.networks.layers import Conv2d, Linear
from rows import Row, make_row
from timing import interleaved

__all__ = ["layers"]

PRODUCTS = ((64, 256), (128, 256), (256, 256), (320, 256), (640, 64), (640, 1024))
CONVOLUTIONS = ((64, 8), (128, 8), (192, 8), (320, 8), (1280, 8))
"""Channels, and positions or the side of a square."""
PROJECTED = ((320, 4096), (640, 1024), (1280, 256))
"""Of Stable Diffusion v1's self-attention at 512 px."""
HEADS = 8
LARGE = {"flash": 2**62, "blocks": 0}


def layers(config: ModelConfig, repeats: int) -> list[Row]:
    """Time them on the CPU of a PyTorch that has oneDNN."""
    rows = []
    for channels, positions in PRODUCTS:
        layer = _frozen(Linear(channels, channels, backend="onednn"))
        run = _pass(lambda x, layer=layer: (layer(x),), torch.randn(1, positions, channels))
        rows += _rows(f"linear, {channels} channels, {positions} positions", _both(run), repeats)
    for channels, side in CONVOLUTIONS:
        x = torch.randn(1, channels, side, side).to(memory_format=torch.channels_last)
        layer = _frozen(Conv2d(channels, channels, 3, padding=1, backend="onednn"))
        run = _pass(lambda x, layer=layer: (layer(x),), x)
        rows += _rows(f"3x3, {channels} channels, {side} x {side}", _both(run), repeats)
    for channels, positions in PROJECTED:
        x = torch.randn(1, positions, channels)
        three = [
            _frozen(Linear(channels, channels, bias=False, backend="onednn")) for _ in range(3)
        ]
        one = _frozen(Linear(channels, 3 * channels, bias=False, backend="onednn"))
        calls = {
            "three": _pass(lambda x, each=three: tuple(one(x) for one in each), x),
            "one product": _pass(lambda x, all_=one: all_(x).chunk(3, dim=-1), x),
        }
        rows += _rows(f"q, k, v, {channels} channels, {positions} positions", calls, repeats)
    for channels, positions in PROJECTED:
        q, k, v, grad = torch.randn(4, 1, HEADS, positions, channels // HEADS)
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        run = partial(projected_attention_onednn.attention_backward, grad, (q, k, v), out, lse)
        calls = {name: partial(_large, large, run) for name, large in LARGE.items()}
        case = f"attention's backward pass, {channels} channels, {positions} positions"
        rows += _rows(case, calls, repeats)
    time = torch.randn(1, 4 * config.unet.channels)
    blocks = [_frozen(Linear(time.shape[1], width, backend="onednn")) for width in _widths(config)]
    calls = {"time projections": lambda: [block(time) for block in blocks]}
    return rows + _rows(f"{len(blocks)} of {config.unet.channels} channels", calls, repeats)


def _both(run: Callable[[], object]) -> dict[str, Callable[[], object]]:
    return {name: partial(_from, worth, run) for name, worth in (("PyTorch", 2**62), ("oneDNN", 0))}


def _from(worth: int, run: Callable[[], object]) -> None:
    with mock.patch.object(linear_onednn, "WORTH", worth):
        run()


def _large(large: int, run: Callable[[], object]) -> None:
    with mock.patch.object(projected_attention_onednn, "LARGE", large):
        run()


def _frozen(layer: nn.Module) -> nn.Module:
    return layer.requires_grad_(False).to(memory_format=torch.channels_last)


def _pass(layer: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor) -> Callable[[], object]:
    """Return a call of a frozen layer on x, and of the gradient of its results to x."""
    cotangents = [torch.randn_like(y) for y in layer(x)]

    def run() -> object:
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(layer(leaf), leaf, cotangents)

    return run


def _widths(config: ModelConfig) -> list[int]:
    """Channels of every residual block."""
    unet = config.unet
    down = [c for c in unet.level_channels for _ in range(unet.res_blocks)]
    up = [c for c in unet.level_channels for _ in range(unet.res_blocks + 1)]
    return down + 2 * [unet.level_channels[-1]] + up


def _rows(case: str, calls: dict[str, Callable[[], object]], repeats: int) -> list[Row]:
    times = interleaved(calls, 10 * repeats, warmup=3)
    return [make_row("layers", name, case, milliseconds=each) for name, each in times.items()]
