"""What the `config.json` files of a diffusers directory may say: the architecture that is built
here.
"""

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["contradictions"]

UNET = {
    "act_fn": "silu",
    "norm_eps": 1e-5,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "center_input_sample": False,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "mid_block_only_cross_attention": False,
    "only_cross_attention": False,
    "dual_cross_attention": False,
    "transformer_layers_per_block": 1,
    "reverse_transformer_layers_per_block": None,
    "class_embed_type": None,
    "num_class_embeds": None,
    "class_embeddings_concat": False,
    "addition_embed_type": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "time_embedding_type": "positional",
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "attention_type": "default",
}
"""`use_linear_projection` is not among them: a linear layer and a 1x1 convolution are the same."""

VAE = {
    "act_fn": "silu",
    "mid_block_add_attention": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "latents_mean": None,
    "latents_std": None,
}

TEXT = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}


def contradictions(
    network: str, fields: Mapping[str, Any], config: Mapping[str, Any]
) -> Iterator[tuple[str, object, object]]:
    """Yield the name of each field that says something else than what is built, what it says, and
    what is built.

    Args:
        network: `unet`, `vae` or `text`.
        fields: of its `config.json`; of a whole CLIP's the text tower's part is looked at.
        config: the model's configuration, by parts and fields.

    """
    expected = {"unet": _unet, "vae": _vae, "text": _text}[network](config[network])
    part = fields.get("text_config") if network == "text" else None
    for values in (fields, part if isinstance(part, Mapping) else {}):
        for name, built in expected.items():
            value = values.get(name)
            if value is not None and not _same(value, built):
                yield name, value, built


def _unet(unet: Mapping[str, Any]) -> dict[str, object]:
    levels = range(len(unet["channel_multipliers"]))
    attends = [level in unet["attention_levels"] for level in levels]
    return UNET | {
        "in_channels": unet["latent_channels"] + unet["additional_channels"],
        "out_channels": unet["latent_channels"],
        "block_out_channels": [unet["channels"] * m for m in unet["channel_multipliers"]],
        "layers_per_block": unet["res_blocks"],
        "cross_attention_dim": unet["context_dim"],
        "attention_head_dim": unet["heads"],  # what it calls the number of heads
        "num_attention_heads": unet["heads"],
        "norm_num_groups": unet["norm_groups"],
        "time_embedding_dim": 4 * unet["channels"],
        "down_block_types": [f"{'CrossAttn' * a}DownBlock2D" for a in attends],
        "up_block_types": [f"{'CrossAttn' * a}UpBlock2D" for a in attends[::-1]],
    }


def _vae(vae: Mapping[str, Any]) -> dict[str, object]:
    levels = len(vae["channel_multipliers"])
    return VAE | {
        "in_channels": vae["image_channels"],
        "out_channels": vae["image_channels"],
        "latent_channels": vae["latent_channels"],
        "block_out_channels": [vae["channels"] * m for m in vae["channel_multipliers"]],
        "layers_per_block": vae["res_blocks"],
        "norm_num_groups": vae["norm_groups"],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def _text(text: Mapping[str, Any]) -> dict[str, object]:
    return TEXT | {
        "vocab_size": text["vocab_size"],
        "max_position_embeddings": text["context_length"],
        "hidden_size": text["width"],
        "intermediate_size": 4 * text["width"],
        "num_attention_heads": text["heads"],
        "num_hidden_layers": text["layers"],
    }


def _same(value: Any, expected: object) -> bool:
    """Compare; a list of the same value for each level counts as that value."""
    if isinstance(value, list) and not isinstance(expected, list):
        return bool(value) and all(_same(each, expected) for each in value)
    return bool(value == expected)
