"""Architecture and schedule constants, as frozen dataclasses: `SD_V1` and whatever a checkpoint's
metadata describes.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["SD_V1", "ModelConfig", "ScheduleConfig", "TextConfig", "UNetConfig", "VAEConfig"]


@dataclass(frozen=True)
class UNetConfig:
    """The denoiser eps_theta(z_t, t, C) (Rombach et al. 2022, arXiv 2112.10752, appendix E)."""

    latent_channels: int
    channels: int
    channel_multipliers: tuple[int, ...]
    res_blocks: int
    """Residual blocks a level on the way down; one more on the way up."""
    attention_levels: tuple[int, ...]
    heads: int
    context_dim: int
    norm_groups: int
    self_injection_level: int
    """P2P injects self-attention from this level on down; SD v1: 1, at 512 px 32x32."""
    word_map_level: int
    """The level whose cross-attention maps local blend reads; SD v1: 2, i.e. 16x16 for 512 px."""

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(self.channels * m for m in self.channel_multipliers)


@dataclass(frozen=True)
class VAEConfig:
    """The KL autoencoder."""

    image_channels: int
    latent_channels: int
    channels: int
    channel_multipliers: tuple[int, ...]
    res_blocks: int
    """Residual blocks a level in the encoder; one more in the decoder."""
    norm_groups: int
    scale: float
    """z_0 is the encoder's mean times this: 0.18215 for SD v1, 1/std elsewhere."""

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(self.channels * m for m in self.channel_multipliers)

    @property
    def downsampling(self) -> int:
        """Image pixels to one latent position, along a side."""
        return int(2 ** (len(self.channel_multipliers) - 1))


@dataclass(frozen=True)
class TextConfig:
    """The CLIP text tower."""

    vocab_size: int
    context_length: int
    width: int
    heads: int
    layers: int


@dataclass(frozen=True)
class ScheduleConfig:
    """The forward process: `scaled_linear` betas, linear in sqrt(beta)."""

    train_steps: int
    beta_start: float
    beta_end: float


@dataclass(frozen=True)
class ModelConfig:
    """Everything that is fixed about a model before its weights are read."""

    name: str
    image_size: int
    """The side in pixels that the model was trained at."""
    guidance_scale: float
    """Default w of classifier-free guidance."""
    unet: UNetConfig
    vae: VAEConfig
    text: TextConfig
    schedule: ScheduleConfig
    vocabulary: tuple[str, ...] | None = None
    """The words a small model was trained on; None: any. A prompt word outside gets a warning."""

    @property
    def granularity(self) -> int:
        """Each side of an image is a multiple of this many pixels; SD v1: 64."""
        return int(self.vae.downsampling * 2 ** (len(self.unet.channel_multipliers) - 1))

    def to_json(self) -> str:
        """Return the configuration as JSON, for a checkpoint's metadata."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ModelConfig":
        """Read what `to_json` wrote; ValueError names a field that is missing or unknown."""
        fields = json.loads(text)
        parts = {
            "unet": UNetConfig,
            "vae": VAEConfig,
            "text": TextConfig,
            "schedule": ScheduleConfig,
        }
        for key, part in parts.items():
            if key not in fields:
                raise ValueError(
                    f"model configuration: got no {key!r}, expected one of each of {sorted(parts)}"
                )
            fields[key] = _build(part, fields[key])
        config: ModelConfig = _build(cls, fields)
        return config


def _build(cls: type, values: Mapping[str, Any]) -> Any:
    """Make a dataclass of JSON values: lists become tuples, names must match exactly."""
    required = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
    known = {f.name for f in dataclasses.fields(cls)}
    if missing := sorted(required - values.keys()):
        raise ValueError(f"{cls.__name__}: missing fields {missing}")
    if unknown := sorted(values.keys() - known):
        raise ValueError(f"{cls.__name__}: unknown fields {unknown}, expected {sorted(known)}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


SD_V1 = ModelConfig(
    name="Stable Diffusion v1",
    image_size=512,
    guidance_scale=7.5,
    unet=UNetConfig(
        latent_channels=4,
        channels=320,
        channel_multipliers=(1, 2, 4, 4),
        res_blocks=2,
        attention_levels=(0, 1, 2),
        heads=8,
        context_dim=768,
        norm_groups=32,
        self_injection_level=1,
        word_map_level=2,
    ),
    vae=VAEConfig(
        image_channels=3,
        latent_channels=4,
        channels=128,
        channel_multipliers=(1, 2, 4, 4),
        res_blocks=2,
        norm_groups=32,
        scale=0.18215,
    ),
    text=TextConfig(vocab_size=49408, context_length=77, width=768, heads=12, layers=12),
    schedule=ScheduleConfig(train_steps=1000, beta_start=0.00085, beta_end=0.012),
)
