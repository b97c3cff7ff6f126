"""Section `layers`: choices of the CPU path, a layer at a time, on a UNet's shapes: forward and
backward, where nothing else is said.

`oneDNN` against `PyTorch`: from how much work on the way to oneDNN pays, which is `WORTH` in
`nti.kernels.linear_onednn`.
`blocks` against `flash`: from what length on attention by blocks of products pays, which is `LARGE`
in `nti.kernels.projected_attention_onednn`. `exp2` against `exp`: of one such block.
`four products` against `one convolution`: from how many positions on a convolution of the doubled
map is computed on the small one: `FEWEST` and `WORTH` in `nti.kernels.upsampled_conv2d_onednn`.
`one product` against `three`: q, k and v by a matrix of their own each, or by one that holds all
three. `time projections` is what computing them once a timestep would save of an iteration.
`Winograd` against `oneDNN`: a forward pass of 3 x 3 convolutions by fewer multiplications.
"""

from collections.abc import Callable, Sequence
from functools import partial
from unittest import mock

import torch
import torch.nn.functional as F
from nti.kernels import linear_onednn, projected_attention_onednn, upsampled_conv2d_onednn
from nti.kernels.linear_onednn import product
from torch import Tensor, nn

from nti.config import ModelConfig
from nti.networks.layers import Conv2d, Linear, Upsample
from rows import Row, make_row
from timing import interleaved

__all__ = ["layers"]

PRODUCTS = ((64, 256), (128, 256), (256, 256), (320, 256), (640, 64), (640, 1024))
CONVOLUTIONS = ((64, 8), (128, 8), (192, 8), (320, 8), (1280, 8))
"""Channels, and positions or the side of a square."""
PROJECTED = ((320, 4096), (640, 1024), (1280, 256))
"""Of Stable Diffusion v1's self-attention at 512 px."""
CONVOLVED = ((320, 64), (640, 32), (1280, 16))
"""Channels and side of Stable Diffusion v1's maps at 512 px."""
TILES = 512
"""Of Winograd's convolution at once."""
UPSAMPLED = ((1280, 16), (640, 32), (1280, 8), (640, 16), (192, 16), (128, 16), (64, 32))
"""Channels and side of the small map: Stable Diffusion v1's at 512 and 256 px, and smaller."""
HEADS = 8
FEWEST = {"one convolution": 2**62, "four products": 0}
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
        forward = partial(projected_attention_onednn.attention, q, k, v)
        back = partial(projected_attention_onednn.attention_backward, grad, (q, k, v), out, lse)
        for name, run in (("forward", forward), ("backward", back)):
            calls = {by: partial(_large, large, run) for by, large in LARGE.items()}
            case = f"attention's {name} pass, {channels} channels, {positions} positions"
            rows += _rows(case, calls, repeats)
    block = torch.randn(projected_attention_onednn.BLOCK)
    calls = {"exp": lambda: torch.exp(block), "exp2": lambda: torch.exp2(block)}
    rows += _rows(f"{len(block)} numbers", calls, repeats)
    for channels, side in UPSAMPLED:
        x = torch.randn(1, channels, side, side).to(memory_format=torch.channels_last)
        layer = _frozen(Upsample(channels, backend="onednn"))
        run = _pass(lambda x, layer=layer: (layer(x),), x)
        calls = {by: partial(_fewest, fewest, run) for by, fewest in FEWEST.items()}
        case = f"3x3 after doubling, {channels} channels, {side} x {side}"
        rows += _rows(case, calls, repeats)
    for channels, side in CONVOLVED:
        layer = _frozen(Conv2d(channels, channels, 3, padding=1, backend="onednn"))
        x = torch.randn(1, channels, side, side).to(memory_format=torch.channels_last)
        given = x[0].permute(1, 2, 0), winograd_weights(layer.weight), layer.bias
        right = layer(x)[0].permute(1, 2, 0)
        torch.testing.assert_close(winograd(*given), right, rtol=1e-4, atol=1e-5)
        calls = {"oneDNN": partial(layer, x), "Winograd": partial(winograd, *given)}
        rows += _rows(f"3x3 forward, {channels} channels, {side} x {side}", calls, repeats)
    time = torch.randn(1, 4 * config.unet.channels)
    blocks = [_frozen(Linear(time.shape[1], width, backend="onednn")) for width in _widths(config)]
    calls = {"time projections": lambda: [block(time) for block in blocks]}
    return rows + _rows(f"{len(blocks)} of {config.unet.channels} channels", calls, repeats)


def winograd_weights(weight: Tensor) -> Tensor:
    """(o, c, 3, 3) -> (4, 4, o, c), 16/9 as many numbers: G W G^T of Lavin and Gray."""
    g = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
    return torch.einsum("ai,bj,ocij->aboc", g, g, weight).contiguous()


def winograd(x: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
    """F(2 x 2, 3 x 3) of Lavin and Gray (arXiv 1509.09308): (h, w, c) -> (h, w, o), of even sides.

    Four results take 16 multiplications of a channel where they take 36 else.
    """
    h, w, _ = x.shape
    x = F.pad(x, (0, 0, 1, 1, 1, 1))
    count = max(1, 2 * TILES // w)
    strips = []
    for top in range(0, h, 2 * count):
        of_rows = []
        rows = _before([x[top + i : h + i][: 2 * count : 2] for i in range(4)])
        for row, of_row in zip(rows, weights, strict=True):
            columns = _before([row[:, i : w + i : 2] for i in range(4)])
            pairs = zip(columns, of_row, strict=True)
            of_rows.append(_after([product(each, weight) for each, weight in pairs]))
        both = [torch.stack(_after(parts), dim=1) for parts in zip(*of_rows, strict=True)]
        strips.append(torch.stack(both, dim=3))
    return torch.cat(strips).view(h, w, -1).add_(bias)


def _before(parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
    a, b, c, d = parts
    return a - c, b + c, c - b, b - d


def _after(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    a, b, c, d = parts
    return a + b + c, b - c - d


def _both(run: Callable[[], object]) -> dict[str, Callable[[], object]]:
    return {name: partial(_from, worth, run) for name, worth in (("PyTorch", 2**62), ("oneDNN", 0))}


def _from(worth: int, run: Callable[[], object]) -> None:
    with mock.patch.object(linear_onednn, "WORTH", worth):
        run()


def _large(large: int, run: Callable[[], object]) -> None:
    with mock.patch.object(projected_attention_onednn, "LARGE", large):
        run()


def _fewest(fewest: int, run: Callable[[], object]) -> None:
    with mock.patch.multiple(upsampled_conv2d_onednn, FEWEST=fewest, WORTH=0):
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
