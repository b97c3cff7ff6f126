"""Layers of frozen weights, which keep for the backward pass only what the gradient to their input
needs.

PyTorch saves for each of GroupNorm, SiLU and convolution its whole input, the last for a weight
gradient that nobody asks for here. These save one tensor where those save three: what a backward
pass can compute again in less time than the convolution beside it takes, it does, and on a CPU the
inside of the feed-forward and the projections of attention, too. With weights that do learn
(training the embedded model) each falls back to PyTorch's own.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from nti.kernels.geglu import geglu, geglu_backward, geglu_forward
from nti.kernels.group_norm import group_norm
from nti.kernels.linear import columns, is_onednn, linear, scatter_columns
from nti.vjp import vjp

__all__ = [
    "Conv2d",
    "FeedForward",
    "GroupNorm",
    "GroupNormSiLU",
    "Linear",
    "attend",
    "by_onednn",
    "recomputed",
]

aten = torch.ops.aten


WORTH = 2**23
"""Multiply-adds from which on oneDNN, and the way to it, take less time than PyTorch's own layer
(`benchmarks/results/layers.csv`)."""


def by_onednn(x: Tensor, positions: int, weight: Tensor, *others: Tensor | None) -> bool:
    """Whether a layer multiplies x by oneDNN: `is_onednn(x)`, none of its weights learns, and
    `weight` at so many positions is work enough.

    A graph that is being compiled holds PyTorch's own layers, which the compiler knows best.
    """
    if positions * weight.numel() < WORTH or torch.compiler.is_compiling():
        return False
    learn = any(each is not None and each.requires_grad for each in (weight, *others))
    return not learn and is_onednn(x)


class Linear(nn.Linear):
    """Product with a matrix, which in float32 on a CPU is oneDNN's and saves its weights alone."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., c_in) -> (..., c_out)."""
        positions = x.shape[:-1].numel()
        if not by_onednn(x, positions, self.weight, self.bias):
            return super().forward(x)
        out: Tensor = _Linear.apply(x, self.weight, self.bias)
        return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return linear(grads[0], weight.t()), None, None


def attend(
    x: Tensor,
    norm: nn.LayerNorm,
    context: Tensor | None,
    projections: tuple[Linear, Linear, Linear],
    heads: int,
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, of norm(x)'s projection q and the context's k and v.

    Where `by_onednn` holds: beside x and the context the result and a number a query are saved, and
    the backward pass projects again.

    Args:
        x: (B, L, heads * d).
        norm: of x.
        context: (B, S, C); None: norm(x).
        projections: to q, k and v.
        heads: their number.

    Returns:
        (B, L, heads * d).

    """
    weights = [layer.weight for layer in projections]
    out: Tensor = _Attention.apply(x, context, norm.weight, norm.bias, norm.eps, heads, *weights)[0]
    return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor, context: Tensor | None, scale: Tensor, shift: Tensor, eps: float, heads: int,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        normed = F.layer_norm(x, scale.shape, scale, shift, eps)
        q, k, v = _project(normed, context, heads, weights)
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        return _tokens(out), lse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, context, scale, shift, ctx.eps, ctx.heads, *weights = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, context, scale, shift, *output, *weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, context, scale, shift, out, lse, *weights = ctx.saved_tensors
        normed, mean, rstd = aten.native_layer_norm(x, scale.shape, scale, shift, ctx.eps)
        q, k, v = _project(normed, context, ctx.heads, weights)
        of_qkv = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            _heads(grads[0], ctx.heads), q, k, v, _heads(out, ctx.heads), lse, 0.0, False
        )
        of_normed, of_k, of_v = (
            linear(_tokens(grad), w.t()) for grad, w in zip(of_qkv, weights, strict=True)
        )
        of_source = of_k.add_(of_v)
        if context is None:
            of_normed += of_source
        of_x = _to_normed_input(of_normed, x, scale, shift, mean, rstd)
        return of_x, None if context is None else of_source, *[None] * 7


def _project(
    normed: Tensor, context: Tensor | None, heads: int, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of the first, keys and values of the second or else of the first."""
    inputs = normed, *[normed if context is None else context] * 2
    q, k, v = (_heads(linear(x, w), heads) for x, w in zip(inputs, weights, strict=True))
    return q, k, v


def _heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, heads * d) -> (B, heads, L, d)."""
    return rearrange(x, "b l (heads d) -> b heads l d", heads=heads)


def _tokens(x: Tensor) -> Tensor:
    """(B, heads, L, d) -> (B, L, heads * d)."""
    return rearrange(x, "b heads l d -> b l (heads d)")


def _to_normed_input(
    grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, rstd: Tensor
) -> Tensor:
    """Turn the gradient to a layer norm's output into that to its input x."""
    out: Tensor = aten.native_layer_norm_backward(
        grad, x, scale.shape, mean, rstd, scale, shift, [True, False, False]
    )[0]
    return out


class FeedForward(nn.Module):
    """Two linear layers around GEGLU, four times as wide inside.

    In float32 on a CPU, frozen: the rows do not know each other, so both passes take a few at a
    time, and only x is saved: the backward pass computes the inside again.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.backend = "reference"
        self.proj_in = Linear(channels, 8 * channels)
        self.proj_out = Linear(4 * channels, channels)

    def forward(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """X (B, L, c) -> the same shape, of x after its norm."""
        into, out = self.proj_in, self.proj_out
        weights = into.weight, into.bias, out.weight, out.bias
        plain = self.backend == "reference"
        if plain and by_onednn(x, x.shape[:-1].numel(), *weights, norm.weight, norm.bias):
            result: Tensor = _FeedForward.apply(x, norm.weight, norm.bias, norm.eps, *weights)
        else:
            result = out(geglu(into(norm(x)), backend=unless_compiling(self.backend)))
        return result


class _FeedForward(torch.autograd.Function):
    ROWS = 256
    """Enough for a product to run at full speed, few enough to stay in the cache."""

    @staticmethod
    def forward(
        x: Tensor, scale: Tensor, shift: Tensor, eps: float, w_in: Tensor, b_in: Tensor,
        w_out: Tensor, b_out: Tensor,
    ) -> Tensor:  # fmt: skip
        def run(rows: Tensor) -> Tensor:
            normed = F.layer_norm(rows, scale.shape, scale, shift, eps)
            return linear(geglu_forward(linear(normed, w_in, b_in)), w_out, b_out)

        return _by_rows(run, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, scale, shift, ctx.eps, w_in, b_in, w_out, _ = inputs
        ctx.save_for_backward(x, scale, shift, w_in, b_in, w_out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, w_in, b_in, w_out = ctx.saved_tensors

        def run(rows: Tensor, grad: Tensor) -> Tensor:
            normed, mean, rstd = aten.native_layer_norm(rows, scale.shape, scale, shift, ctx.eps)
            wide = linear(normed, w_in, b_in)
            grad = linear(geglu_backward(linear(grad, w_out.t()), wide), w_in.t())
            return _to_normed_input(grad, rows, scale, shift, mean, rstd)

        return _by_rows(run, x, grads[0]), *[None] * 7


def _by_rows(run: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Run on a few rows at a time of tensors (..., c), and put the results together."""
    parts = (torch.split(x.flatten(0, -2), _FeedForward.ROWS) for x in tensors)
    return torch.cat([run(*rows) for rows in zip(*parts, strict=True)]).view(tensors[0].shape)


class Conv2d(nn.Conv2d):
    """Convolution of square kernels that saves nothing but its weights."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, h, w) -> (B, c_out, h', w')."""
        if self.weight.requires_grad:
            return super().forward(x)
        convolve = _ColumnsConv2d if self._is_product(x) else _Conv2d
        out: Tensor = convolve.apply(x, self.weight, self.bias, self.stride, self.padding)
        return out

    def _is_product(self, x: Tensor) -> bool:
        """Whether to multiply columns: where they are no larger than the weights are."""
        positions = x.shape[0] * x.shape[2] * x.shape[3] // self.stride[0] ** 2
        return (
            by_onednn(x, positions, self.weight, self.bias)
            and (positions <= self.out_channels or self.kernel_size == (1, 1))
            and x.is_contiguous(memory_format=torch.channels_last)
            and self.weight.is_contiguous(memory_format=torch.channels_last)
        )


class _Conv2d(torch.autograd.Function):
    """Of its input the gradient to it needs the shape alone."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]
    ) -> Tensor:
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.stride, ctx.padding = inputs
        ctx.shape = x.shape
        ctx.save_for_backward(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        # Never read; but PyTorch on CUDA lays a gradient out anew if it is not laid out like this.
        last = grads[0].stride(1) == 1
        shape_alone = torch.empty(
            ctx.shape, dtype=grads[0].dtype, device=grads[0].device,
            memory_format=torch.channels_last if last else torch.contiguous_format,
        )  # fmt: skip
        settings = [ctx.stride, ctx.padding, [1, 1], False, [0, 0], 1, [True, False, False]]
        grad_x = aten.convolution_backward(grads[0], shape_alone, weight, None, *settings)[0]
        return grad_x, None, None, None, None


class _ColumnsConv2d(_Conv2d):
    """The same as one product, for square kernels and channels last."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]
    ) -> Tensor:
        patches = columns(_channels_last(x), weight.shape[-1], stride[0], padding[0])
        return _channels_first(linear(patches, _matrix(weight), bias))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        patches = linear(_channels_last(grads[0]).contiguous(), _matrix(weight).t())
        b, c, h, w = ctx.shape
        grad = scatter_columns(
            patches, (b, h, w, c), weight.shape[-1], ctx.stride[0], ctx.padding[0]
        )
        return _channels_first(grad), None, None, None, None


def _channels_last(x: Tensor) -> Tensor:
    """(B, c, h, w) -> (B, h, w, c)."""
    return x.permute(0, 2, 3, 1)


def _channels_first(x: Tensor) -> Tensor:
    """(B, h, w, c) -> (B, c, h, w)."""
    return x.permute(0, 3, 1, 2)


def _matrix(weight: Tensor) -> Tensor:
    """Weights (o, c, k, k) -> (o, k * k * c), the order of `columns`."""
    return _channels_last(weight).flatten(1)


class GroupNorm(nn.GroupNorm):
    """GroupNorm, which saves x and two numbers a group."""

    silu = False
    backend = "reference"
    """Who computes it; see `nti.networks.attention.set_backend`."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, c, h, w) -> the same shape."""
        if self.weight.requires_grad or self.bias.requires_grad:
            normed = super().forward(x)
            return F.silu(normed) if self.silu else normed
        return group_norm(
            x, self.weight, self.bias, self.num_groups, self.eps,
            silu=self.silu, backend=unless_compiling(self.backend),
        )  # fmt: skip


class GroupNormSiLU(GroupNorm):
    """silu(GroupNorm(x)), which saves no more."""

    silu = True


def unless_compiling(backend: str) -> str:
    """Return who computes what the compiler fuses by itself: nobody else, if it is compiling."""
    return "reference" if torch.compiler.is_compiling() else backend


def recomputed(run: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """run(*inputs), which saves the inputs alone and runs again in the backward pass.

    torch.utils.checkpoint does the same, but not under torch.func.
    """
    out: Tensor = _Recomputed.apply(run, *inputs)
    return out


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(run: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        return run(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.run = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        _, pull = vjp(ctx.run, *ctx.saved_tensors)
        return None, *pull(grads[0])
