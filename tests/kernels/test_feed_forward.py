"""The feed-forward by each backend, against PyTorch's in float64."""

import pytest
import torch
import torch.nn.functional as F
from nti.kernels import feed_forward_onednn
from nti.kernels.feed_forward import feed_forward
from nti.kernels.layer_norm import LayerNorm
from torch import Tensor

from checks import BY_BACKEND, normal, with_gradients
from tolerances import assert_close


def plain(x: Tensor, norm: LayerNorm, *weights: Tensor) -> Tensor:
    w_in, b_in, w_out, b_out = weights
    normed = F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
    value, gate = F.linear(normed, w_in, b_in).chunk(2, dim=-1)
    return F.linear(value * F.gelu(gate), w_out, b_out)


@BY_BACKEND
@pytest.mark.parametrize("kept", [0, 2**20], ids=["computed again", "kept"])
@pytest.mark.parametrize("shape", [(2, 36, 6), (1, 7, 6)], ids=["B2-L36", "B1-L7"])
def test_value_and_gradient(
    backend: str, shape: tuple[int, ...], kept: int, any_size: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(feed_forward_onednn, "ROWS", 10)  # no divisor of their number
    monkeypatch.setattr(feed_forward_onednn, "ROWS_A_CHANNEL", 12)
    monkeypatch.setattr(feed_forward_onednn, "KEPT", kept)
    draw = normal(f"feed-forward {shape}", torch.float32, "cpu")
    x, cotangent = draw(*shape), draw(*shape)
    norm = LayerNorm(draw(6), draw(6), 1e-5)
    weights = draw(48, 6), draw(48), draw(6, 24), draw(6)
    wide = LayerNorm(norm.weight.double(), norm.bias.double(), norm.eps)
    expected = with_gradients(
        lambda x: plain(x, wide, *(w.double() for w in weights)), [x.double()], cotangent.double()
    )
    found = with_gradients(
        lambda x: feed_forward(x, norm, *weights, backend=backend), [x], cotangent
    )
    for ours, right in zip(found, expected, strict=True):
        assert_close(ours, right.float())
