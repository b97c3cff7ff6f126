"""The attention of the UNet's transformers, with the control point that Prompt-to-Prompt fills."""

from torch import Tensor, nn

from nti.kernels.cfg_attention import Fold, cfg_attention, materialised
from nti.kernels.projected_attention import merge_heads, project, projected_attention
from nti.kernels.self_attention import self_attention
from nti.networks.control import AttentionControl, MapHook, Site
from nti.networks.layers import Linear, frozen_or_reference, layer_norm

__all__ = ["CrossAttention", "SelfAttention"]


class Attention(nn.Module):
    """Projections of multi-head attention: q, k, v without bias, the output with."""

    def __init__(
        self, site: Site, channels: int, context_dim: int, heads: int, backend: str
    ) -> None:
        super().__init__()
        self.site, self.heads, self.backend = site, heads, backend
        self.to_q = Linear(channels, channels, bias=False, backend=backend)
        self.to_k = Linear(context_dim, channels, bias=False, backend=backend)
        self.to_v = Linear(context_dim, channels, bias=False, backend=backend)
        self.to_out = Linear(channels, channels, backend=backend)

    def uncontrolled(self, x: Tensor, norm: nn.LayerNorm, context: Tensor | None) -> Tensor:
        """(B, L, channels) -> the same, of x after its norm: what nobody controls or looks at."""
        weights = self.to_q.weight, self.to_k.weight, self.to_v.weight
        backend = frozen_or_reference(self.backend, *weights, norm.weight, norm.bias)
        attended = projected_attention(
            x, layer_norm(norm), context, weights, self.heads, backend=backend
        )
        out: Tensor = self.to_out(attended)
        return out

    def project(self, normed: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k and v, each (B, heads, L or S, d)."""
        weights = self.to_q.weight, self.to_k.weight, self.to_v.weight
        backend = frozen_or_reference(self.backend, *weights)
        return project(normed, context, weights, self.heads, backend=backend)

    def looked_at(
        self, hook: MapHook, q: Tensor, k: Tensor, v: Tensor, fold: Fold | None
    ) -> Tensor:
        """Attend by the map that the hook returns, which is in memory as a whole."""
        return hook(self.site, materialised(q, k, fold)) @ v

    def merge(self, x: Tensor) -> Tensor:
        """(B, heads, L, d) -> (B, L, channels), through the output projection."""
        out: Tensor = self.to_out(merge_heads(x))
        return out


class SelfAttention(Attention):
    """Attention among positions; an edit's row may take its source row's q and k, or k and v."""

    def __init__(
        self, site: Site, channels: int, heads: int, *, inject: bool, backend: str = "reference"
    ) -> None:
        super().__init__(site, channels, channels, heads, backend)
        self.inject = inject
        self.order = 0
        """Its place among the network's self-attention layers, as data passes them."""

    def forward(
        self,
        x: Tensor,
        norm: nn.LayerNorm,
        control: AttentionControl | None = None,
        hook: MapHook | None = None,
    ) -> Tensor:
        """(B, L, channels) -> the same, of x after its norm."""
        rows = control.self_rows if self.inject and control is not None else None
        shared = None if control is None else control.value_rows
        seen = hook if hook is not None and hook.wants(self.site) else None
        if rows is None and shared is None and seen is None:
            return self.uncontrolled(x, norm, None)
        q, k, v = self.project(norm(x), None)
        if shared is not None:
            k, v = k[shared[self.order]], v[shared[self.order]]
        if seen is None:
            return self.merge(self_attention(q, k, v, rows))
        if rows is not None:
            q, k = q[rows], k[rows]
        return self.merge(self.looked_at(seen, q, k, v, None))


class CrossAttention(Attention):
    """Attention of positions to tokens, edited by the control, which may ask for word maps."""

    def __init__(
        self,
        site: Site,
        channels: int,
        context_dim: int,
        heads: int,
        *,
        maps_words: bool,
        backend: str = "reference",
    ) -> None:
        super().__init__(site, channels, context_dim, heads, backend)
        self.maps_words = maps_words

    def forward(
        self,
        x: Tensor,
        norm: nn.LayerNorm,
        context: Tensor,
        control: AttentionControl | None = None,
        hook: MapHook | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """X (B, L, channels), context (B, 77, C) -> the same as x, of x after its norm; and word
        maps (R, L, W) or None.
        """
        seen = hook if hook is not None and hook.wants(self.site) else None
        fold = None if control is None else control.fold
        words = control.words if control is not None and self.maps_words else None
        if fold is None and words is None and seen is None:
            return self.uncontrolled(x, norm, context), None
        q, k, v = self.project(norm(x), context)
        out, maps = cfg_attention(q, k, v, fold, words, backend=self.backend)
        if seen is not None:
            out = self.looked_at(seen, q, k, v, fold)
        return self.merge(out), maps
