"""The spellings in which each network's weights are found in files: which keys, after which prefix,
renamed by which table.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from nti.weights_loader import diffusers_v1, sd_v1
from nti.weights_loader.sd_v1 import Row

__all__ = [
    "IGNORED",
    "Layout",
    "choose",
    "is_ignored",
    "text_layouts",
    "unet_layouts",
    "vae_layouts",
]

CLIP = ("logit_scale", "text_projection", "text_projection.", "vision_model.", "visual_projection.")
"""What a whole CLIP holds beside the states of its text tower."""

IGNORED = (
    "v_pred",
    "model_ema.",
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "logvar",
    "lvlb_weights",
    "scale_factor",
    "global_step",
    "denoiser.",
    "embedding_manager.",
    *(
        f"{root}{name}"
        for root in ("", "cond_stage_model.", "cond_stage_model.transformer.")
        for name in CLIP
    ),
)
"""Keys that hold no weights of the three networks (beginnings, if they end in a dot): schedule
buffers, moving averages, what trainers and converters leave behind, and the key that marks a model
as one that predicts v (see `nti.weights_loader.descriptions`)."""


@dataclass(frozen=True)
class Layout:
    """How one network's keys are spelled in a file."""

    name: str
    """For people: `original` or `diffusers`, with what is special about it."""
    prefix: str
    """Stands before every key of the network."""
    rows: tuple[Row, ...]
    """The rename table, its source keys without the prefix."""
    ignored: tuple[str, ...] = ()
    """Keys of the network, likewise without prefix, that hold none of its weights (beginnings, if
    they end in a dot)."""

    def source_keys(self) -> list[str]:
        """Every key that a file in this layout holds."""
        return [self.prefix + source for sources, _ in self.rows for source in sources]


def choose(layouts: Sequence[Layout], keys: Collection[str]) -> Layout | None:
    """Return the layout most of whose keys are there; None where not one key of any is."""
    present = set(keys)
    best = max(layouts, key=lambda layout: len(present.intersection(layout.source_keys())))
    return best if present.intersection(best.source_keys()) else None


def is_ignored(key: str, layout: Layout) -> bool:
    """Whether a key is on one of the named lists."""
    names = (*IGNORED, *(layout.prefix + name for name in layout.ignored))
    return any(key.startswith(n) if n.endswith(".") else key == n for n in names)


def unet_layouts(
    multipliers: Sequence[int], res_blocks: int, attention_levels: Sequence[int]
) -> tuple[Layout, ...]:
    """UNet: in a whole checkpoint, or as diffusers writes it."""
    shape = multipliers, res_blocks, attention_levels
    return (
        Layout("original", sd_v1.PREFIXES["unet"], tuple(sd_v1.unet_table(*shape))),
        Layout("diffusers", "", tuple(diffusers_v1.unet_table(*shape))),
    )


def vae_layouts(multipliers: Sequence[int], res_blocks: int) -> tuple[Layout, ...]:
    """Autoencoder: in a whole checkpoint, alone, or as diffusers writes it and used to.

    Converters of diffusers' files used to leave newer names in the attention of the original
    layout, and its weights linear.
    """
    rows, mixed = (
        tuple(sd_v1.vae_table(multipliers, res_blocks, names))
        for names in (sd_v1.ATTENTION, diffusers_v1.ATTENTION)
    )
    ignored = ("loss.",)
    prefix = sd_v1.PREFIXES["vae"]
    new, old = (
        tuple(diffusers_v1.vae_table(multipliers, res_blocks, names))
        for names in (diffusers_v1.ATTENTION, diffusers_v1.OLD_ATTENTION)
    )
    return (
        Layout("original", prefix, rows, ignored),
        Layout("original, the autoencoder alone", "", rows, ignored),
        Layout("diffusers", "", new),
        Layout("diffusers, old attention names", "", old),
        Layout("original, diffusers' attention names", prefix, mixed, ignored),
        Layout("original, diffusers' attention names, the autoencoder alone", "", mixed, ignored),
    )


def text_layouts(layers: int) -> tuple[Layout, ...]:
    """Text tower: in a whole checkpoint or as transformers writes it, each with and without
    `text_model.`.
    """
    rows = tuple(sd_v1.text_table(layers))
    ignored = ("embeddings.position_ids",)
    prefix = sd_v1.PREFIXES["text"]
    short = prefix.removesuffix("text_model.")
    return (
        Layout("original", prefix, rows, ignored),
        Layout("original, without text_model", short, rows, ignored),
        Layout("diffusers", "text_model.", rows, ignored),
        Layout("diffusers, without text_model", "", rows, ignored),
    )
