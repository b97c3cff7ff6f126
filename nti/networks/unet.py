"""The UNet of Stable Diffusion v1: eps_theta(z_t, t, C), with Prompt-to-Prompt's control passed
down the call.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from nti.config import UNetConfig
from nti.networks.attention import CrossAttention, SelfAttention
from nti.networks.control import AttentionCapture, AttentionControl, AttentionMap
from nti.networks.frozen import (
    Conv2d,
    FeedForward,
    GroupNorm,
    GroupNormSiLU,
    Linear,
    recomputed,
)

__all__ = ["Begun", "UNet", "timestep_embedding"]

RES_NORM_EPS = 1e-5
TRANSFORMER_NORM_EPS = 1e-6


def timestep_embedding(timestep: Tensor, channels: int) -> Tensor:
    """Sinusoids of the timestep: (B,) -> (B, channels) float32, the cosines first."""
    half = channels // 2
    index = torch.arange(half, dtype=torch.float32, device=timestep.device)
    angle = timestep[:, None].float() * torch.exp(index * -math.log(10000.0) / half)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """Linear, SiLU, linear on the sinusoids, then the SiLU that all residual blocks begin with."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.linear_1 = Linear(channels, 4 * channels)
        self.linear_2 = Linear(4 * channels, 4 * channels)

    def forward(self, timestep: Tensor) -> Tensor:
        # The sinusoids are float32 whatever the weights are, as in the published networks.
        x = timestep_embedding(timestep, self.channels).to(self.linear_1.weight.dtype)
        return F.silu(self.linear_2(F.silu(self.linear_1(x))))


class ResBlock(nn.Module):
    """Residual block, shifted by the time embedding between its two convolutions."""

    def __init__(self, c_in: int, c_out: int, time_dim: int, groups: int) -> None:
        super().__init__()
        self.norm_1 = GroupNormSiLU(groups, c_in, eps=RES_NORM_EPS)
        self.conv_1 = Conv2d(c_in, c_out, 3, padding=1)
        self.time_projection = Linear(time_dim, c_out)
        self.norm_2 = GroupNormSiLU(groups, c_out, eps=RES_NORM_EPS)
        self.conv_2 = Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Identity() if c_in == c_out else Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv_1(self.norm_1(x))
        h = h + self.time_projection(time)[:, :, None, None]
        h = self.conv_2(self.norm_2(h))
        out: Tensor = self.skip(x) + h
        return out


class SpatialTransformer(nn.Module):
    """Self-attention, cross-attention and feed-forward over a feature map's positions."""

    def __init__(self, config: UNetConfig, site: str, level: int) -> None:
        super().__init__()
        channels = config.level_channels[level]
        self.site, self.level = site, level
        inject = level >= config.self_injection_level
        maps_words = site != "middle" and level == config.word_map_level
        self.norm = GroupNorm(config.norm_groups, channels, eps=TRANSFORMER_NORM_EPS)
        self.proj_in = Conv2d(channels, channels, 1)
        self.norm_1 = nn.LayerNorm(channels)
        self.self_attention = SelfAttention(channels, config.heads, inject)
        self.norm_2 = nn.LayerNorm(channels)
        self.cross_attention = CrossAttention(
            channels, config.context_dim, config.heads, maps_words
        )
        self.norm_3 = nn.LayerNorm(channels)
        self.feed_forward = FeedForward(channels)
        self.proj_out = Conv2d(channels, channels, 1)

    def attend_to_itself(
        self, x: Tensor, control: AttentionControl | None, capture: AttentionCapture | None
    ) -> Tensor:
        """X (B, c, h, w) -> tokens (B, h * w, c) after self-attention, no context seen yet."""
        found = self._collector(capture, "self")
        h: Tensor = rearrange(self.proj_in(self.norm(x)), "b c h w -> b (h w) c")
        h = h + self.self_attention(h, self.norm_1, control, found)
        self._keep(capture, "self", found, x.shape[-2])
        return h

    def attend_to_context(
        self,
        x: Tensor,
        h: Tensor,
        context: Tensor,
        control: AttentionControl | None,
        capture: AttentionCapture | None,
    ) -> tuple[Tensor, Tensor | None]:
        """X and its tokens -> the shape of x, word maps (R, W, h, w) if this site gives them."""
        height, width = x.shape[-2:]
        found = self._collector(capture, "cross")
        attended, maps = self.cross_attention(h, self.norm_2, context, control, found)
        h = h + attended
        h = h + self.feed_forward(h, self.norm_3)
        self._keep(capture, "cross", found, height)
        if maps is not None:
            maps = rearrange(maps, "r (h w) n -> r n h w", h=height)
        return x + self.proj_out(rearrange(h, "b (h w) c -> b c h w", w=width)), maps

    def _collector(self, capture: AttentionCapture | None, kind: str) -> list[Tensor] | None:
        """Return a list to fill where maps are asked for, else None."""
        return [] if capture is not None and capture.wants(kind, self.level) else None

    def _keep(
        self, capture: AttentionCapture | None, kind: str, found: list[Tensor] | None, height: int
    ) -> None:
        if capture is not None:
            for p in found or ():
                p = rearrange(p, "b heads (h w) s -> b heads h w s", h=height)
                capture.maps.append(AttentionMap(self.site, self.level, kind, p))


class Downsample(nn.Module):
    """Halve the sides by a strided 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class Upsample(nn.Module):
    """Double the sides: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class DownLevel(nn.Module):
    """One resolution on the way down: residual blocks and transformers, then half the sides."""

    def __init__(self, config: UNetConfig, level: int, skips: list[int]) -> None:
        super().__init__()
        channels, time_dim = config.level_channels[level], 4 * config.channels
        self.res = nn.ModuleList()
        self.attention = nn.ModuleList()
        for _ in range(config.res_blocks):
            self.res.append(ResBlock(skips[-1], channels, time_dim, config.norm_groups))
            if level in config.attention_levels:
                self.attention.append(SpatialTransformer(config, "down", level))
            skips.append(channels)
        self.downsample = None
        if level < len(config.channel_multipliers) - 1:
            self.downsample = Downsample(channels)
            skips.append(channels)

    def begin(
        self,
        x: Tensor,
        time: Tensor,
        control: AttentionControl | None,
        capture: AttentionCapture | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Run the first blocks up to where the context comes in: x, the transformer's tokens."""
        res: nn.Module = self.res[0]
        x = res(x, time)
        if not self.attention:
            return x, None
        transformer = self.attention[0]
        assert isinstance(transformer, SpatialTransformer)
        return x, transformer.attend_to_itself(x, control, capture)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        skips: list[Tensor],
        conditioning: "Conditioning",
        begun: tuple[Tensor, Tensor | None] | None = None,
    ) -> Tensor:
        for i, res in enumerate(self.res):
            if i == 0 and begun is not None:
                x, tokens = begun
            else:
                x, tokens = conditioning.residual(res, x, time), None
            if self.attention:
                x = conditioning.attend(self.attention[i], x, tokens)
            skips.append(x)
        if self.downsample is not None:
            x = self.downsample(x)
            skips.append(x)
        return x


class Middle(nn.Module):
    """ResBlock, transformer, ResBlock at the coarsest level."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        level = len(config.channel_multipliers) - 1
        channels, time_dim = config.level_channels[level], 4 * config.channels
        self.res_1 = ResBlock(channels, channels, time_dim, config.norm_groups)
        self.attention = SpatialTransformer(config, "middle", level)
        self.res_2 = ResBlock(channels, channels, time_dim, config.norm_groups)

    def forward(self, x: Tensor, time: Tensor, conditioning: "Conditioning") -> Tensor:
        x = conditioning.residual(self.res_1, x, time)
        x = conditioning.attend(self.attention, x)
        return conditioning.residual(self.res_2, x, time)


class UpLevel(nn.Module):
    """One resolution on the way up: each residual block takes a skip; then double the sides."""

    def __init__(self, config: UNetConfig, level: int, c_in: int, skips: list[int]) -> None:
        super().__init__()
        channels, time_dim = config.level_channels[level], 4 * config.channels
        self.res = nn.ModuleList()
        self.attention = nn.ModuleList()
        for i in range(config.res_blocks + 1):
            width = (c_in if i == 0 else channels) + skips.pop()
            self.res.append(ResBlock(width, channels, time_dim, config.norm_groups))
            if level in config.attention_levels:
                self.attention.append(SpatialTransformer(config, "up", level))
        self.upsample = Upsample(channels) if level > 0 else None

    def forward(
        self, x: Tensor, time: Tensor, skips: list[Tensor], conditioning: "Conditioning"
    ) -> Tensor:
        for i, res in enumerate(self.res):
            x = conditioning.residual(res, torch.cat([x, skips.pop()], dim=1), time)
            if self.attention:
                x = conditioning.attend(self.attention[i], x)
        if self.upsample is not None:
            x = self.upsample(x)
        return x


@dataclass(frozen=True)
class Conditioning:
    """What all transformers of a forward pass share: context, control, and where maps gather."""

    context: Tensor
    control: AttentionControl | None
    capture: AttentionCapture | None
    word_maps: list[Tensor]
    recompute: bool = False
    """Keep a block's input alone and run the block again in the backward pass."""

    def residual(self, block: nn.Module, x: Tensor, time: Tensor) -> Tensor:
        """Run one residual block on x (B, c, h, w)."""
        out: Tensor = recomputed(block, x, time) if self.recompute else block(x, time)
        return out

    def attend(self, transformer: nn.Module, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Run one transformer on x (B, c, h, w), and keep its word maps if it gives any.

        `tokens` are x's after self-attention, where they are known.
        """
        assert isinstance(transformer, SpatialTransformer)
        if self.recompute and tokens is None and self.control is None and self.capture is None:
            return recomputed(partial(_attend, transformer), x, self.context)
        if tokens is None:
            tokens = transformer.attend_to_itself(x, self.control, self.capture)
        out, maps = transformer.attend_to_context(
            x, tokens, self.context, self.control, self.capture
        )
        if maps is not None:
            self.word_maps.append(maps)
        return out


def _attend(transformer: SpatialTransformer, x: Tensor, context: Tensor) -> Tensor:
    tokens = transformer.attend_to_itself(x, None, None)
    return transformer.attend_to_context(x, tokens, context, None, None)[0]


@dataclass(frozen=True)
class Begun:
    """A forward pass up to its first look at the context: the same whatever the context is."""

    time: Tensor
    """The time embedding after its SiLU (B, 4c)."""
    stem: Tensor
    """The input convolution's output, which is the first skip."""
    first: tuple[Tensor, Tensor | None]
    """Where the finest level stands: see `DownLevel.begin`."""


class UNet(nn.Module):
    """The denoiser: `down`, `middle`, `up`, with a skip from every block down to one up."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        widths, levels = config.level_channels, range(len(config.level_channels))
        self.time_embedding = TimeEmbedding(config.channels)
        self.conv_in = Conv2d(config.latent_channels, config.channels, 3, padding=1)
        skips = [config.channels]
        self.down = nn.ModuleList(DownLevel(config, level, skips) for level in levels)
        self.middle = Middle(config)
        self.up = nn.ModuleList(
            UpLevel(config, level, widths[min(level + 1, len(widths) - 1)], skips)
            for level in reversed(levels)
        )
        self.norm_out = GroupNormSiLU(config.norm_groups, config.channels, eps=RES_NORM_EPS)
        self.conv_out = Conv2d(config.channels, config.latent_channels, 3, padding=1)

    def forward(
        self,
        latent: Tensor,
        timestep: Tensor,
        context: Tensor,
        control: AttentionControl | None = None,
        capture: AttentionCapture | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Predict the noise.

        Args:
            latent: z_t (B, 4, h, w), in the weights' dtype.
            timestep: t (B,), 0..999.
            context: the prompt's token states C (B, 77, context_dim), in the weights' dtype.
            control: Prompt-to-Prompt's control of this step, or None.
            capture: a request for full maps, or None (the working path: no map in memory).

        Returns:
            eps (B, 4, h, w), and the word maps (R, W, h', w') that the control asked for, averaged
            over heads and over the sites of `config.word_map_level`, or None.

        """
        return self.finish(
            self.begin(latent, timestep, control, capture), context, control, capture
        )

    def begin(
        self,
        latent: Tensor,
        timestep: Tensor,
        control: AttentionControl | None = None,
        capture: AttentionCapture | None = None,
    ) -> Begun:
        """Do all that does not depend on the context; arguments as for `forward`.

        Null-text optimization asks for the noise of one latent under many embeddings.
        """
        time = self.time_embedding(timestep)
        stem = self.conv_in(latent)
        first = self.down[0]
        assert isinstance(first, DownLevel)
        return Begun(time, stem, first.begin(stem, time, control, capture))

    def finish(
        self,
        begun: Begun,
        context: Tensor,
        control: AttentionControl | None = None,
        capture: AttentionCapture | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Do the rest: `forward`'s results."""
        conditioning = Conditioning(context, control, capture, [], self.recompute)
        time, x, skips = begun.time, begun.stem, [begun.stem]
        for i, level in enumerate(self.down):
            x = level(x, time, skips, conditioning, begun.first if i == 0 else None)
        x = self.middle(x, time, conditioning)
        for level in self.up:
            x = level(x, time, skips, conditioning)
        eps: Tensor = self.conv_out(self.norm_out(x))
        maps = torch.stack(conditioning.word_maps).mean(dim=0) if conditioning.word_maps else None
        return eps, maps
