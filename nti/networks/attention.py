"""The attention of the UNet's transformers, with the control point that Prompt-to-Prompt fills."""

from einops import rearrange
from torch import Tensor, nn

from nti.kernels.backend import check_backend
from nti.kernels.cfg_attention import Fold, cfg_attention, materialised
from nti.kernels.self_attention import self_attention
from nti.networks.control import AttentionControl
from nti.networks.frozen import FeedForward, GroupNorm, Linear, attend, by_onednn

__all__ = ["CrossAttention", "SelfAttention", "set_backend"]


def set_backend(network: nn.Module, backend: str) -> None:
    """Have what has a kernel computed by `reference` or `triton`; ValueError for another."""
    check_backend(backend)
    for module in network.modules():
        if isinstance(module, Attention | GroupNorm | FeedForward):
            module.backend = backend


class Attention(nn.Module):
    """Projections of multi-head attention: q, k, v without bias, the output with."""

    backend: str
    """Who computes it; fixed before the first call, so that a graph holds one kernel."""

    def __init__(self, channels: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.backend = "reference"
        self.to_q = Linear(channels, channels, bias=False)
        self.to_k = Linear(context_dim, channels, bias=False)
        self.to_v = Linear(context_dim, channels, bias=False)
        self.to_out = Linear(channels, channels)

    def split(self, x: Tensor) -> Tensor:
        """(B, L, heads * d) -> (B, heads, L, d)."""
        return rearrange(x, "b l (heads d) -> b heads l d", heads=self.heads)

    def by_onednn(
        self,
        x: Tensor,
        norm: nn.LayerNorm,
        control: AttentionControl | None,
        capture: list[Tensor] | None,
    ) -> bool:
        """Whether nobody edits, looks or learns, and oneDNN multiplies x: then `attend`."""
        weights = self.to_q.weight, self.to_k.weight, self.to_v.weight, norm.weight, norm.bias
        plain = control is None and capture is None and self.backend == "reference"
        return plain and by_onednn(x, x.shape[:-1].numel(), *weights)

    def attend(self, x: Tensor, norm: nn.LayerNorm, context: Tensor | None) -> Tensor:
        """(B, L, channels) -> the same, of x after its norm; see `nti.networks.frozen.attend`."""
        projections = self.to_q, self.to_k, self.to_v
        out: Tensor = self.to_out(attend(x, norm, context, projections, self.heads))
        return out

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
        self,
        x: Tensor,
        norm: nn.LayerNorm,
        control: AttentionControl | None,
        capture: list[Tensor] | None = None,
    ) -> Tensor:
        """(B, L, channels) -> the same, of x after its norm; `capture` receives probabilities
        (B, heads, L, L).
        """
        if self.by_onednn(x, norm, control, capture):
            return self.attend(x, norm, None)
        x = norm(x)
        q, k, v = self.split(self.to_q(x)), self.split(self.to_k(x)), self.split(self.to_v(x))
        rows = control.self_rows if self.inject and control is not None else None
        if capture is not None:
            own = (q, k) if rows is None else (q[rows], k[rows])
            capture.append(materialised(*own))
        return self.merge(self_attention(q, k, v, rows, backend=self.backend))


class CrossAttention(Attention):
    """Attention of positions to tokens, edited by the control, which may ask for word maps."""

    def __init__(self, channels: int, context_dim: int, heads: int, maps_words: bool) -> None:
        super().__init__(channels, context_dim, heads)
        self.maps_words = maps_words

    def forward(
        self,
        x: Tensor,
        norm: nn.LayerNorm,
        context: Tensor,
        control: AttentionControl | None,
        capture: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """X (B, L, channels), its norm, context (B, 77, C) -> the same as x, word maps (R, L, W) or
        None.

        `capture` receives the probabilities after the edit, (B, heads, L, 77).
        """
        if self.by_onednn(x, norm, control, capture):
            return self.attend(x, norm, context), None
        x = norm(x)
        q, k, v = (
            self.split(self.to_q(x)),
            self.split(self.to_k(context)),
            self.split(self.to_v(context)),
        )
        fold = words = None
        if control is not None:
            fold = Fold(control.source_rows, control.source_mix, control.own_mix)
            words = control.words if self.maps_words else None
        if capture is not None:
            capture.append(materialised(q, k, fold))
        out, maps = cfg_attention(q, k, v, fold, words, backend=self.backend)
        return self.merge(out), maps
