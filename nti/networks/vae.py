"""The KL autoencoder of Stable Diffusion v1: image (B, 3, H, W) <-> latent (B, 4, H/8, W/8)."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from nti.autocast import without_autocast
from nti.config import VAEConfig
from nti.networks.layers import GroupNorm, GroupNormSiLU

__all__ = ["VAE"]

NORM_EPS = 1e-6


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1 convolution on the skip where the width
    changes.
    """

    def __init__(self, c_in: int, c_out: int, groups: int) -> None:
        super().__init__()
        self.norm_1 = GroupNormSiLU(groups, c_in, eps=NORM_EPS)
        self.conv_1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm_2 = GroupNormSiLU(groups, c_out, eps=NORM_EPS)
        self.conv_2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_1(self.norm_1(x))
        h = self.conv_2(self.norm_2(h))
        out: Tensor = self.skip(x) + h
        return out


class SpatialSelfAttention(nn.Module):
    """The middle block's attention: one head, over all positions, 1x1 convolutions."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, channels, eps=NORM_EPS)
        self.to_q = nn.Conv2d(channels, channels, 1)
        self.to_k = nn.Conv2d(channels, channels, 1)
        self.to_v = nn.Conv2d(channels, channels, 1)
        self.to_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (
            rearrange(to(normed), "b c h w -> b 1 (h w) c")
            for to in (self.to_q, self.to_k, self.to_v)
        )
        attended = F.scaled_dot_product_attention(q.contiguous(), k.contiguous(), v.contiguous())
        out: Tensor = self.to_out(rearrange(attended, "b 1 (h w) c -> b c h w", h=x.shape[2]))
        return x + out


class Middle(nn.Module):
    """ResBlock, attention, ResBlock at the coarsest level, in the encoder and the decoder alike."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.res_1 = ResBlock(channels, channels, groups)
        self.attention = SpatialSelfAttention(channels, groups)
        self.res_2 = ResBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        x = self.res_1(x)
        x = self.attention(x)
        x = self.res_2(x)
        return x


class Downsample(nn.Module):
    """Halve the sides: a strided 3x3 convolution, padded on the right and at the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Double the sides: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class EncoderLevel(nn.Module):
    """The residual blocks of one resolution, then (but at the coarsest) half the sides."""

    def __init__(self, c_in: int, c_out: int, blocks: int, groups: int, last: bool) -> None:
        super().__init__()
        self.res = nn.ModuleList(
            ResBlock(c_in if i == 0 else c_out, c_out, groups) for i in range(blocks)
        )
        self.downsample = nn.Identity() if last else Downsample(c_out)

    def forward(self, x: Tensor) -> Tensor:
        for res in self.res:
            x = res(x)
        out: Tensor = self.downsample(x)
        return out


class DecoderLevel(nn.Module):
    """The residual blocks of one resolution, then (but at the finest) double the sides."""

    def __init__(self, c_in: int, c_out: int, blocks: int, groups: int, last: bool) -> None:
        super().__init__()
        self.res = nn.ModuleList(
            ResBlock(c_in if i == 0 else c_out, c_out, groups) for i in range(blocks)
        )
        self.upsample = nn.Identity() if last else Upsample(c_out)

    def forward(self, x: Tensor) -> Tensor:
        for res in self.res:
            x = res(x)
        out: Tensor = self.upsample(x)
        return out


class Encoder(nn.Module):
    """Image -> moments of q(z | image): mean and log variance, stacked along the channels."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths, groups = config.level_channels, config.norm_groups
        self.conv_in = nn.Conv2d(config.image_channels, widths[0], 3, padding=1)
        self.levels = nn.ModuleList(
            EncoderLevel(
                widths[max(i - 1, 0)], width, config.res_blocks, groups, last=i == len(widths) - 1
            )
            for i, width in enumerate(widths)
        )
        self.middle = Middle(widths[-1], groups)
        self.norm_out = GroupNormSiLU(groups, widths[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)
        self.to_moments = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)

    @without_autocast
    def forward(self, image: Tensor) -> Tensor:
        x = self.conv_in(image)
        for level in self.levels:
            x = level(x)
        x = self.middle(x)
        x = self.conv_out(self.norm_out(x))
        moments: Tensor = self.to_moments(x)
        return moments


class Decoder(nn.Module):
    """Unscaled latent -> image; `levels` run from the coarsest to the finest."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths, groups = config.level_channels[::-1], config.norm_groups
        self.from_latent = nn.Conv2d(config.latent_channels, config.latent_channels, 1)
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.middle = Middle(widths[0], groups)
        self.levels = nn.ModuleList(
            DecoderLevel(
                widths[max(i - 1, 0)],
                width,
                config.res_blocks + 1,
                groups,
                last=i == len(widths) - 1,
            )
            for i, width in enumerate(widths)
        )
        self.norm_out = GroupNormSiLU(groups, widths[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.image_channels, 3, padding=1)

    @without_autocast
    def forward(self, latent: Tensor) -> Tensor:
        x = self.conv_in(self.from_latent(latent))
        x = self.middle(x)
        for level in self.levels:
            x = level(x)
        image: Tensor = self.conv_out(self.norm_out(x))
        return image


class VAE(nn.Module):
    """Encoder and decoder with the latent's scale between them."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self.encoder.conv_in.weight.dtype

    def moments(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Image in [-1, 1] -> unscaled mean and log variance of q(z | image), (B, 4, H/8, W/8)."""
        # A photograph comes with its channels last, and all layers after it would keep that.
        mean, log_variance = self.encoder(image.contiguous()).chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def encode(self, image: Tensor) -> Tensor:
        """Image (B, 3, H, W) in [-1, 1] -> z_0 (B, 4, H/8, W/8): the scaled mean, no sample."""
        mean, _ = self.moments(image)
        return mean * self.config.scale

    def decode(self, latent: Tensor) -> Tensor:
        """Latent z_0 (B, 4, h, w) -> image (B, 3, 8h, 8w), nominally in [-1, 1], not clamped."""
        image: Tensor = self.decoder(latent.contiguous() / self.config.scale)
        return image
