"""Attention from its input by each backend, against PyTorch's in float64."""

import pytest
import torch
import torch.nn.functional as F
from nti.kernels import projected_attention_onednn
from nti.kernels.backend import has_onednn
from nti.kernels.layer_norm import LayerNorm
from nti.kernels.projected_attention import projected_attention
from torch import Tensor

from checks import BY_BACKEND, normal, with_gradients
from tolerances import assert_close, relative_error

HEADS = 2


def plain(x: Tensor, context: Tensor | None, norm: LayerNorm, weights: list[Tensor]) -> Tensor:
    normed = F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
    source = normed if context is None else context
    q, k, v = (
        F.linear(y, w).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for y, w in zip((normed, source, source), weights, strict=True)
    )
    maps = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1)
    return (maps @ v).transpose(1, 2).flatten(2)


@BY_BACKEND
@pytest.mark.parametrize("large", [0, 2**20], ids=["by blocks", "whole"])
@pytest.mark.parametrize("kept", [0, 2**20], ids=["projected again", "kept"])
@pytest.mark.parametrize("crosses", [False, True], ids=["self", "cross"])
def test_value_and_gradients(
    backend: str,
    crosses: bool,
    kept: int,
    large: int,
    any_size: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(projected_attention_onednn, "LARGE", large)
    monkeypatch.setattr(projected_attention_onednn, "BLOCK", 60)  # 3 of the 20 rows, or 12
    monkeypatch.setattr(projected_attention_onednn, "KEPT", kept)
    draw = normal(f"projected {crosses}", torch.float32, "cpu")
    x, cotangent = draw(2, 20, 8), draw(2, 20, 8)
    norm = LayerNorm(draw(8), draw(8), 1e-5)
    width = 6 if crosses else 8
    weights = [draw(8, 8), draw(8, width), draw(8, width)]
    inputs = [x, draw(2, 5, width)] if crosses else [x]
    wide = LayerNorm(norm.weight.double(), norm.bias.double(), norm.eps)

    def exact(x: Tensor, context: Tensor | None = None) -> Tensor:
        return plain(x, context, wide, [w.double() for w in weights])

    def ours(x: Tensor, context: Tensor | None = None) -> Tensor:
        q, k, v = weights
        return projected_attention(x, norm, context, (q, k, v), HEADS, backend=backend)

    expected = with_gradients(exact, [each.double() for each in inputs], cotangent.double())
    for found, right in zip(with_gradients(ours, inputs, cotangent), expected, strict=True):
        assert_close(found, right.float())


@pytest.mark.skipif(not has_onednn(torch.device("cpu"), torch.float32), reason="needs oneDNN")
def test_large_scores_do_not_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """All scores of a query are moved by as much as 1,000 up or down, which changes no result. Exp
    alone would be infinite or zero."""
    monkeypatch.setattr(projected_attention_onednn, "LARGE", 0)
    draw = normal("large scores", torch.float32, "cpu")
    q, k, v, grad = (draw(1, HEADS, 20, 8) for _ in range(4))
    k = k + 400 * draw(8)
    exact = [x.double().requires_grad_() for x in (q, k, v)]
    scores = exact[0] @ exact[1].mT / 8**0.5
    assert scores.max() > 500
    assert scores.min() < -500
    expected = scores.softmax(dim=-1) @ exact[2]
    out, lse = projected_attention_onednn.attention(q, k, v)
    # float32 rounds a score of 1,000 to 6e-5, and exp makes a relative error of that.
    assert relative_error(out, expected) < 2e-4
    assert_close(lse, scores.logsumexp(dim=-1).float())
    of_qkv = torch.autograd.grad(expected, exact, grad.double())
    found = projected_attention_onednn.attention_backward(grad, (q, k, v), out, lse)
    for ours, right in zip(found, of_qkv, strict=True):
        assert relative_error(ours, right) < 2e-3
