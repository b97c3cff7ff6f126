"""The attention of the UNet's transformers, with the control point that Prompt-to-Prompt fills."""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from nti.kernels import cfg_attention
from nti.networks.control import AttentionControl

__all__ = ["CrossAttention", "SelfAttention"]


class Attention(nn.Module):
    """Projections of multi-head attention: q, k, v without bias, the output with."""

    def __init__(self, channels: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_dim, channels, bias=False)
        self.to_v = nn.Linear(context_dim, channels, bias=False)
        self.to_out = nn.Linear(channels, channels)

    def split(self, x: Tensor) -> Tensor:
        """(B, L, heads * d) -> (B, heads, L, d)."""
        return rearrange(x, "b l (heads d) -> b heads l d", heads=self.heads)

    def merge(self, x: Tensor) -> Tensor:
        """(B, heads, L, d) -> (B, L, channels), through the output projection."""
        out: Tensor = self.to_out(rearrange(x, "b heads l d -> b l (heads d)"))
        return out


class SelfAttention(Attention):
    """Attention among positions; an edit's row may take its source row's q and k."""

    def __init__(self, channels: int, heads: int, inject: bool) -> None:
        super().__init__(channels, channels, heads)
        self.inject = inject

    def forward(
        self, x: Tensor, control: AttentionControl | None, capture: list[Tensor] | None = None
    ) -> Tensor:
        """(B, L, channels) -> the same; `capture` receives probabilities (B, heads, L, L)."""
        q, k, v = self.split(self.to_q(x)), self.split(self.to_k(x)), self.split(self.to_v(x))
        if self.inject and control is not None:
            q, k = q[control.self_rows], k[control.self_rows]
        if capture is not None:
            capture.append((q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1))
        return self.merge(F.scaled_dot_product_attention(q, k, v))


class CrossAttention(Attention):
    """Attention of positions to tokens, edited by the control, which may ask for word maps."""

    def __init__(self, channels: int, context_dim: int, heads: int, maps_words: bool) -> None:
        super().__init__(channels, context_dim, heads)
        self.maps_words = maps_words

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        control: AttentionControl | None,
        capture: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, L, channels), context (B, 77, C) -> the same as x, word maps (R, L, W) or None.

        `capture` receives the probabilities after the edit, (B, heads, L, 77).
        """
        q, k, v = (
            self.split(self.to_q(x)),
            self.split(self.to_k(context)),
            self.split(self.to_v(context)),
        )
        if control is None:
            if capture is not None:
                capture.append((q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1))
            return self.merge(F.scaled_dot_product_attention(q, k, v)), None
        fold = (control.source_rows, control.source_mix, control.own_mix)
        if capture is not None:
            capture.append(cfg_attention.materialised(q, k, *fold))
        maps = None
        if self.maps_words and control.words is not None:
            maps = cfg_attention.word_maps(q, k, control.words, *fold)
        return self.merge(cfg_attention.cfg_attention(q, k, v, *fold)), maps
