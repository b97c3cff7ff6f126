"""The UNet of Stable Diffusion v1: eps_theta(z_t, t, C), with Prompt-to-Prompt's control passed
down the call.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from nti.autocast import without_autocast
from nti.config import ScheduleConfig, UNetConfig
from nti.kernels.backend import check_backend
from nti.networks.attention import CrossAttention, SelfAttention
from nti.networks.control import AttentionControl, MapHook, Site
from nti.networks.layers import (
    Conv2d,
    FeedForward,
    GroupNorm,
    GroupNormSiLU,
    Linear,
    Upsample,
    recomputed,
)

__all__ = ["Beginning", "UNet", "timestep_embedding"]

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

    def __init__(self, channels: int, backend: str) -> None:
        super().__init__()
        self.channels = channels
        self.linear_1 = Linear(channels, 4 * channels, backend=backend)
        self.linear_2 = Linear(4 * channels, 4 * channels, backend=backend)

    def forward(self, timestep: Tensor) -> Tensor:
        # The sinusoids are float32 whatever the weights are, as in the published networks.
        x = timestep_embedding(timestep, self.channels).to(self.linear_1.weight.dtype)
        return F.silu(self.linear_2(F.silu(self.linear_1(x))))


class ResBlock(nn.Module):
    """Residual block, shifted by the time embedding between its two convolutions."""

    def __init__(self, c_in: int, c_out: int, config: UNetConfig, backend: str) -> None:
        super().__init__()
        groups, time_dim = config.norm_groups, 4 * config.channels
        self.norm_1 = GroupNormSiLU(groups, c_in, eps=RES_NORM_EPS, backend=backend)
        self.conv_1 = Conv2d(c_in, c_out, 3, padding=1, backend=backend)
        self.time_projection = Linear(time_dim, c_out, backend=backend)
        self.norm_2 = GroupNormSiLU(groups, c_out, eps=RES_NORM_EPS, backend=backend)
        self.conv_2 = Conv2d(c_out, c_out, 3, padding=1, backend=backend)
        same = c_in == c_out
        self.skip = nn.Identity() if same else Conv2d(c_in, c_out, 1, backend=backend)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv_1(self.norm_1(x))
        h = h + self.time_projection(time)[:, :, None, None]
        h = self.conv_2(self.norm_2(h))
        out: Tensor = self.skip(x) + h
        return out


class SpatialTransformer(nn.Module):
    """Self-attention, cross-attention and feed-forward over a feature map's positions."""

    def __init__(
        self, config: UNetConfig, place: str, level: int, block: int, backend: str
    ) -> None:
        super().__init__()
        channels = config.level_channels[level]
        inject = level >= config.self_injection_level
        maps_words = place != "middle" and level == config.word_map_level
        groups, heads = config.norm_groups, config.heads
        self.norm = GroupNorm(groups, channels, eps=TRANSFORMER_NORM_EPS, backend=backend)
        self.proj_in = Conv2d(channels, channels, 1, backend=backend)
        self.norm_1 = nn.LayerNorm(channels)
        self.self_attention = SelfAttention(
            Site(place, level, block, "self"), channels, heads, inject=inject, backend=backend
        )
        self.norm_2 = nn.LayerNorm(channels)
        self.cross_attention = CrossAttention(
            Site(place, level, block, "cross"), channels, config.context_dim, heads,
            maps_words=maps_words, backend=backend,
        )  # fmt: skip
        self.norm_3 = nn.LayerNorm(channels)
        self.feed_forward = FeedForward(channels, backend=backend)
        self.proj_out = Conv2d(channels, channels, 1, backend=backend)

    def begin(self, x: Tensor, control: AttentionControl | None, hook: MapHook | None) -> Tensor:
        """What comes before the context: x (B, c, h, w) -> (B, h * w, c)."""
        # Each norm goes with its block, which may compute it again in the backward pass.
        h: Tensor = rearrange(self.proj_in(self.norm(x)), "b c h w -> b (h w) c")
        attended: Tensor = self.self_attention(h, self.norm_1, control, hook)
        return h + attended

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        control: AttentionControl | None,
        hook: MapHook | None,
        begun: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """X (B, c, h, w), and what `begin` made of it -> its shape, and word maps (R, W, h, w)."""
        height, width = x.shape[-2:]
        h = self.begin(x, control, hook) if begun is None else begun
        attended, maps = self.cross_attention(h, self.norm_2, context, control, hook)
        h = h + attended
        h = h + self.feed_forward(h, self.norm_3)
        if maps is not None:
            maps = rearrange(maps, "r (h w) n -> r n h w", h=height)
        return x + self.proj_out(rearrange(h, "b (h w) c -> b c h w", w=width)), maps


@dataclass(frozen=True, eq=False)
class Beginning:
    """How far a forward pass gets without the prompt: to the first cross-attention.

    All prompts at one latent and timestep share it.
    """

    time: Tensor
    """The time embedding after its SiLU (B, 4c)."""
    skip: Tensor
    """After the first convolution (B, c, h, w)."""
    x: Tensor
    """After the first residual block (B, c, h, w)."""
    attended: Tensor | None
    """After the first self-attention (B, h * w, c); None where the finest level has none."""


@dataclass(frozen=True)
class Conditioning:
    """What all blocks of a forward pass share, and where word maps gather."""

    time: Tensor
    """The time embedding after its SiLU (B, 4c)."""
    context: Tensor | None
    """None where a pass only begins."""
    control: AttentionControl | None
    hook: MapHook | None
    recompute: bool
    """Keep a block's input alone and run the block again in the backward pass."""
    word_maps: list[Tensor]

    def residual(self, block: nn.Module, x: Tensor) -> Tensor:
        """Run one residual block on x (B, c, h, w)."""
        if self.recompute:
            return recomputed(block, x, self.time)
        out: Tensor = block(x, self.time)
        return out

    def begin(self, transformer: SpatialTransformer, x: Tensor) -> Tensor:
        """Run what comes before the context in a transformer on x (B, c, h, w)."""
        if self.recompute and self.control is None and self.hook is None:
            return recomputed(lambda x: transformer.begin(x, None, None), x)
        return transformer.begin(x, self.control, self.hook)

    def attend(self, transformer: nn.Module, x: Tensor, begun: Tensor | None = None) -> Tensor:
        """Run one transformer on x (B, c, h, w), and keep its word maps if it gives any."""
        if self.recompute and self.control is None and self.hook is None:
            given = (x, self.context) if begun is None else (x, self.context, begun)
            return recomputed(lambda x, c, *b: transformer(x, c, None, None, *b)[0], *given)
        out: Tensor
        out, maps = transformer(x, self.context, self.control, self.hook, begun)
        if maps is not None:
            self.word_maps.append(maps)
        return out


class Downsample(nn.Module):
    """Halve the sides by a strided 3x3 convolution."""

    def __init__(self, channels: int, backend: str) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, stride=2, padding=1, backend=backend)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class DownLevel(nn.Module):
    """One resolution on the way down: residual blocks and transformers, then half the sides."""

    def __init__(self, config: UNetConfig, level: int, skips: list[int], backend: str) -> None:
        super().__init__()
        channels = config.level_channels[level]
        self.res, self.attention = nn.ModuleList(), nn.ModuleList()
        for block in range(config.res_blocks):
            self.res.append(ResBlock(skips[-1], channels, config, backend))
            if level in config.attention_levels:
                self.attention.append(SpatialTransformer(config, "down", level, block, backend))
            skips.append(channels)
        self.downsample = None
        if level < len(config.channel_multipliers) - 1:
            self.downsample = Downsample(channels, backend)
            skips.append(channels)

    def begin(self, x: Tensor, conditioning: Conditioning) -> tuple[Tensor, Tensor | None]:
        """Return x after the first residual block, and where the transformer after it began."""
        x = conditioning.residual(self.res[0], x)
        first = cast(SpatialTransformer, self.attention[0]) if self.attention else None
        return x, None if first is None else conditioning.begin(first, x)

    def forward(
        self,
        x: Tensor,
        skips: list[Tensor],
        conditioning: Conditioning,
        begun: Beginning | None = None,
    ) -> Tensor:
        for i, res in enumerate(self.res):
            x = conditioning.residual(res, x) if begun is None else begun.x
            if self.attention:
                attended = None if begun is None else begun.attended
                x = conditioning.attend(self.attention[i], x, attended)
            begun = None  # only the first block was begun
            skips.append(x)
        if self.downsample is not None:
            x = self.downsample(x)
            skips.append(x)
        return x


class Middle(nn.Module):
    """ResBlock, transformer, ResBlock at the coarsest level."""

    def __init__(self, config: UNetConfig, backend: str) -> None:
        super().__init__()
        level = len(config.channel_multipliers) - 1
        channels = config.level_channels[level]
        self.res_1 = ResBlock(channels, channels, config, backend)
        self.attention = SpatialTransformer(config, "middle", level, 0, backend)
        self.res_2 = ResBlock(channels, channels, config, backend)

    def forward(self, x: Tensor, conditioning: Conditioning) -> Tensor:
        x = conditioning.residual(self.res_1, x)
        x = conditioning.attend(self.attention, x)
        return conditioning.residual(self.res_2, x)


class UpLevel(nn.Module):
    """One resolution on the way up: each residual block takes a skip; then double the sides."""

    def __init__(
        self, config: UNetConfig, level: int, c_in: int, skips: list[int], backend: str
    ) -> None:
        super().__init__()
        channels = config.level_channels[level]
        self.res, self.attention = nn.ModuleList(), nn.ModuleList()
        for block in range(config.res_blocks + 1):
            width = (c_in if block == 0 else channels) + skips.pop()
            self.res.append(ResBlock(width, channels, config, backend))
            if level in config.attention_levels:
                self.attention.append(SpatialTransformer(config, "up", level, block, backend))
        self.upsample = Upsample(channels, backend=backend) if level > 0 else None

    def forward(self, x: Tensor, skips: list[Tensor], conditioning: Conditioning) -> Tensor:
        for i, res in enumerate(self.res):
            x = conditioning.residual(res, torch.cat([x, skips.pop()], dim=1))
            if self.attention:
                x = conditioning.attend(self.attention[i], x)
        if self.upsample is not None:
            x = self.upsample(x)
        return x


class UNet(nn.Module):
    """The denoiser: `down`, `middle`, `up`, with a skip from every block down to one up.

    Who computes it is fixed here: `backend` as in `nti.kernels.backend`, and whether blocks are run
    again in the backward pass (`recompute`) instead of kept. `schedule` says what its output is;
    None: the noise.
    """

    def __init__(
        self,
        config: UNetConfig,
        *,
        schedule: ScheduleConfig | None = None,
        backend: str = "reference",
        recompute: bool = False,
    ) -> None:
        super().__init__()
        check_backend(backend)
        self.config, self.schedule = config, schedule
        self.backend, self.recompute = backend, recompute
        widths, levels = config.level_channels, range(len(config.level_channels))
        self.time_embedding = TimeEmbedding(config.channels, backend)
        self.conv_in = Conv2d(config.input_channels, config.channels, 3, padding=1, backend=backend)
        skips = [config.channels]
        self.down = nn.ModuleList(DownLevel(config, level, skips, backend) for level in levels)
        self.middle = Middle(config, backend)
        self.up = nn.ModuleList(
            UpLevel(config, level, widths[min(level + 1, len(widths) - 1)], skips, backend)
            for level in reversed(levels)
        )
        self.norm_out = GroupNormSiLU(
            config.norm_groups, config.channels, eps=RES_NORM_EPS, backend=backend
        )
        self.conv_out = Conv2d(
            config.channels, config.latent_channels, 3, padding=1, backend=backend
        )
        layers = [each for each in self.modules() if isinstance(each, SelfAttention)]
        for order, layer in enumerate(layers):
            layer.order = order
        self.self_attentions = len(layers)

    @without_autocast
    def begin(
        self,
        latent: Tensor,
        timestep: Tensor,
        control: AttentionControl | None = None,
        hook: MapHook | None = None,
    ) -> Beginning:
        """Compute what comes before the prompt.

        Arguments are those of `forward`; the control and the hook see the first self-attention.
        """
        time = self.time_embedding(timestep)
        conditioning = Conditioning(time, None, control, hook, self.recompute, [])
        skip = self.conv_in(latent)
        return Beginning(time, skip, *cast(DownLevel, self.down[0]).begin(skip, conditioning))

    @without_autocast
    def forward(
        self,
        latent: Tensor,
        timestep: Tensor,
        context: Tensor,
        control: AttentionControl | None = None,
        hook: MapHook | None = None,
        begun: Beginning | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Predict the noise, or v where `schedule` says so (see `nti.sampling.step.noise`).

        Args:
            latent: z_t (B, 4, h, w), in the weights' dtype, followed along the channels by what
                `config.additional_channels` stands for: (B, 4 + additional, h, w).
            timestep: t (B,), 0..999.
            context: the prompt's token states C (B, 77, context_dim), in the weights' dtype.
            control: Prompt-to-Prompt's or MasaCtrl's control of this step, or None.
            hook: what sees and may change full maps, or None (the working path: no map in memory).
            begun: what `begin` made of the same latent, timestep, control and hook; None: it is
                computed here.

        Returns:
            eps or v (B, 4, h, w), and the word maps (R, W, h', w') that the control asked for,
            averaged over heads and over the sites of `config.word_map_level`, or None.

        """
        if begun is None:
            begun = self.begin(latent, timestep, control, hook)
        conditioning = Conditioning(begun.time, context, control, hook, self.recompute, [])
        x, skips = begun.skip, [begun.skip]
        for i, level in enumerate(self.down):
            x = level(x, skips, conditioning, begun if i == 0 else None)
        x = self.middle(x, conditioning)
        for level in self.up:
            x = level(x, skips, conditioning)
        predicted: Tensor = self.conv_out(self.norm_out(x))
        return predicted, _mean(conditioning.word_maps)

    def with_backend(self, backend: str) -> "UNet":
        """Return the same network, on the same weights, computed by another backend."""
        with torch.device("meta"):
            other = UNet(
                self.config, schedule=self.schedule, backend=backend, recompute=self.recompute
            )
        other.load_state_dict(self.state_dict(), assign=True)
        for ours, theirs in zip(self.parameters(), other.parameters(), strict=True):
            theirs.requires_grad_(ours.requires_grad)
        return other.train(self.training)


def _mean(maps: Sequence[Tensor]) -> Tensor | None:
    return torch.stack(list(maps)).mean(dim=0) if maps else None
