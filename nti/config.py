"""Architecture and schedule constants, as frozen dataclasses: `SD_V1` and whatever a checkpoint's
metadata describes.

A file's metadata is read into them by type and bound; what its numbers must be to each other is
checked wherever one is made.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta

__all__ = ["SD_V1", "ModelConfig", "ScheduleConfig", "TextConfig", "UNetConfig", "VAEConfig"]

MOST_WEIGHTS = 10**10
"""Ten times what SD v1 has."""

LONGEST_DECAY = 80.0
"""-log of the smallest alpha_bar: float32 still holds exp(-80). SD v1's is exp(-5.4)."""

Channels = Annotated[int, Meta(ge=1, le=8192)]
Count = Annotated[int, Meta(ge=1, le=64)]
Level = Annotated[int, Meta(ge=0, le=7)]
Levels = Annotated[tuple[Level, ...], Meta(max_length=8)]
Multipliers = Annotated[tuple[Count, ...], Meta(min_length=1, max_length=8)]
Beta = Annotated[float, Meta(gt=0, lt=1)]
Word = Annotated[str, Meta(min_length=1, max_length=64)]


@dataclass(frozen=True)
class UNetConfig:
    """The denoiser eps_theta(z_t, t, C) (Rombach et al. 2022, arXiv 2112.10752, appendix E)."""

    latent_channels: Count
    channels: Channels
    channel_multipliers: Multipliers
    res_blocks: Count
    """Residual blocks a level on the way down; one more on the way up."""
    attention_levels: Levels
    heads: Count
    context_dim: Channels
    norm_groups: Count
    self_injection_level: Level
    """P2P injects self-attention from this level on down; SD v1: 1, at 512 px 32x32."""
    word_map_level: Level
    """The level whose cross-attention maps local blend reads; SD v1: 2, i.e. 16x16 for 512 px."""
    additional_channels: Annotated[int, Meta(ge=0, le=64)] = 0
    """Input channels after those of z_t; SD v1's inpainting model: 5 (see `nti.inpaint`)."""

    def __post_init__(self) -> None:
        """Raise ValueError for numbers that make no network together."""
        last = len(self.channel_multipliers) - 1
        _check(self.channels % 2 == 0, "channels", self.channels, "an even number")
        _check(
            max(self.attention_levels, default=0) <= last,
            "attention_levels", self.attention_levels, f"levels up to {last}",
        )  # fmt: skip
        _check(
            self.self_injection_level <= last,
            "self_injection_level", self.self_injection_level, f"at most {last}",
        )  # fmt: skip
        _check(
            self.word_map_level in self.attention_levels,
            "word_map_level", self.word_map_level, f"one of {self.attention_levels}",
        )  # fmt: skip
        _check_divides("norm_groups", self.norm_groups, self.level_channels)
        # The middle block, at the coarsest level, always attends.
        attending = [self.level_channels[level] for level in {*self.attention_levels, last}]
        _check_divides("heads", self.heads, attending)

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(self.channels * m for m in self.channel_multipliers)

    @property
    def input_channels(self) -> int:
        """Channels that the network takes: of z_t and the additional ones."""
        return self.latent_channels + self.additional_channels


@dataclass(frozen=True)
class VAEConfig:
    """The KL autoencoder."""

    image_channels: int
    latent_channels: Count
    channels: Channels
    channel_multipliers: Multipliers
    res_blocks: Count
    """Residual blocks a level in the encoder; one more in the decoder."""
    norm_groups: Count
    scale: Annotated[float, Meta(gt=0, le=1000)]
    """z_0 is the encoder's mean times this: 0.18215 for SD v1, 1/std elsewhere."""

    def __post_init__(self) -> None:
        """Raise ValueError for numbers that make no network together."""
        _check(self.image_channels == 3, "image_channels", self.image_channels, "3")
        _check_divides("norm_groups", self.norm_groups, self.level_channels)

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

    vocab_size: Annotated[int, Meta(ge=49408, le=100_000)]
    """CLIP's tokenizer gives ids up to 49407."""
    context_length: Annotated[int, Meta(ge=3, le=1024)]
    width: Channels
    heads: Count
    layers: Count

    def __post_init__(self) -> None:
        """Raise ValueError for numbers that make no network together."""
        _check_divides("heads", self.heads, [self.width])


@dataclass(frozen=True)
class ScheduleConfig:
    """The forward process, and what of it the UNet predicts."""

    train_steps: Annotated[int, Meta(ge=2, le=10_000)]
    beta_start: Beta
    beta_end: Beta
    beta_schedule: Literal["scaled_linear", "linear"] = "scaled_linear"
    """Betas are spaced evenly in sqrt(beta), as SD v1's are, or in beta."""
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"
    """The noise, or v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) z_0 (Salimans and Ho 2022, arXiv
    2202.00512)."""

    def __post_init__(self) -> None:
        """Raise ValueError for a process that runs backwards or leaves no signal at all."""
        _check(
            self.beta_start <= self.beta_end,
            "beta_start", self.beta_start, f"at most beta_end, which is {self.beta_end}",
        )  # fmt: skip
        decay = -self.train_steps * math.log1p(-self.beta_end)
        _check(
            decay <= LONGEST_DECAY,
            "beta_end", f"{self.beta_end} for {self.train_steps} steps",
            f"a process that leaves some signal: less, or fewer steps (train_steps x -log(1 -"
            f" beta_end) at most {LONGEST_DECAY:g})",
        )  # fmt: skip


@dataclass(frozen=True)
class ModelConfig:
    """Everything that is fixed about a model before its weights are read."""

    name: Word
    image_size: Annotated[int, Meta(ge=1, le=8192)]
    """The side in pixels that the model was trained at."""
    guidance_scale: Annotated[float, Meta(ge=0, le=1000)]
    """Default w of classifier-free guidance."""
    unet: UNetConfig
    vae: VAEConfig
    text: TextConfig
    schedule: ScheduleConfig
    vocabulary: Annotated[tuple[Word, ...], Meta(max_length=10_000)] | None = None
    """The words a small model was trained on; None: any. A prompt word outside gets a warning."""

    def __post_init__(self) -> None:
        """Raise ValueError for networks that do not fit each other, or that are too large."""
        unet, vae = self.unet, self.vae
        _check(
            unet.context_dim == self.text.width,
            "unet.context_dim", unet.context_dim, f"text.width, which is {self.text.width}",
        )  # fmt: skip
        _check(
            unet.latent_channels == vae.latent_channels,
            "unet.latent_channels", unet.latent_channels, f"the VAE's, {vae.latent_channels}",
        )  # fmt: skip
        _check(
            self.image_size % self.granularity == 0,
            "image_size", self.image_size, f"a multiple of {self.granularity}",
        )  # fmt: skip
        weights = sum(_least_weights(self))
        _check(weights <= MOST_WEIGHTS, "weights", f"{weights:,} or more", f"{MOST_WEIGHTS:,}")
        # They are printed, and a terminal obeys control characters.
        for field, words in (("name", [self.name]), ("vocabulary", self.vocabulary or ())):
            odd = next((word for word in words if not word.isprintable()), None)
            _check(odd is None, field, repr(odd), "printable characters")

    @property
    def granularity(self) -> int:
        """Each side of an image is a multiple of this many pixels; SD v1: 64."""
        return int(self.vae.downsampling * 2 ** (len(self.unet.channel_multipliers) - 1))

    @property
    def inpaints(self) -> bool:
        """Whether the UNet takes a mask and the latent of a masked image besides z_t."""
        return self.unet.additional_channels == 1 + self.unet.latent_channels

    def for_inpainting(self) -> "ModelConfig":
        """Return the configuration of the inpainting model that was made from this one's."""
        channels = 1 + self.unet.latent_channels
        unet = dataclasses.replace(self.unet, additional_channels=channels)
        return dataclasses.replace(self, name=f"{self.name} inpainting", unet=unet)

    def to_json(self) -> str:
        """Return the configuration as JSON, for a checkpoint's metadata."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str, what: str = "model configuration") -> "ModelConfig":
        """Read what `to_json` wrote.

        Args:
            text: JSON.
            what: names the text in an error.

        Raises:
            ValueError: a field that is missing, unknown, or not of its type and within its bounds,
            or numbers that do not fit each other; the message names the field.

        """
        # Of the loader's package, which needs PyTorch; a configuration does not.
        from nti.weights_loader.metadata import decode, printable

        config = decode(text, cls, what)
        if unknown := sorted(_unknown(decode(text, dict[str, Any], what), config)):
            names = printable(", ".join(unknown))
            raise ValueError(f"{what}: got unknown fields {names}, expected none")
        return config


def _check(holds: bool, field: str, got: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"{field}: got {got}, expected {expected}")


def _check_divides(field: str, divisor: int, channels: Sequence[int]) -> None:
    odd = next((c for c in channels if c % divisor), None)
    _check(odd is None, field, divisor, f"a divisor of {odd}, the channels of a level")


def _least_weights(config: ModelConfig) -> Iterator[int]:
    """Yield weights of the larger layers alone, so that they are fewer than there are."""
    for network in (config.unet, config.vae):
        for channels in network.level_channels:
            # Down and up, two 3x3 convolutions a block.
            yield 2 * network.res_blocks * 2 * 9 * channels**2
    yield config.text.vocab_size * config.text.width
    yield config.text.layers * 12 * config.text.width**2


def _unknown(fields: dict[str, Any], config: Any, place: str = "") -> Iterator[str]:
    """Yield what JSON names and the dataclass that was made of it has not."""
    known = {field.name for field in dataclasses.fields(config)}
    for name, value in fields.items():
        if name not in known:
            yield repr(f"{place}{name}")
        elif dataclasses.is_dataclass(part := getattr(config, name)):
            yield from _unknown(value, part, f"{place}{name}.")


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
