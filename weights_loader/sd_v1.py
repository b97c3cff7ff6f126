"""The original Stable Diffusion v1 key layout, as rename tables into this project's parameter
names.

A row is (source keys, target name); several source keys are concatenated along dimension 0 (CLIP's
q, k and v become one `in_proj`). The tables are functions of a network's depth and channel
multipliers, because the layout numbers its blocks in one run: SD v1 is `unet_table((1, 2, 4, 4), 2,
(0, 1, 2))`, `vae_table((1, 2, 4, 4), 2)`, `text_table(12)`.
"""

from collections.abc import Iterator, Sequence

__all__ = [
    "ATTENTION",
    "PREFIXES",
    "Row",
    "layer_rows",
    "text_table",
    "transformer_rows",
    "unet_table",
    "vae_table",
]

Row = tuple[tuple[str, ...], str]

PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text": "cond_stage_model.transformer.text_model.",
}
"""Where each network's keys stand in a checkpoint."""

ATTENTION = ("q", "k", "v", "proj_out")
"""The autoencoder's q, k, v and output projection."""


def layer_rows(source: str, target: str) -> Iterator[Row]:
    """Rows of a layer with weight and bias."""
    yield (f"{source}.weight",), f"{target}.weight"
    yield (f"{source}.bias",), f"{target}.bias"


def _projection(source: str, target: str) -> Iterator[Row]:
    """A layer without bias."""
    yield (f"{source}.weight",), f"{target}.weight"


def vae_table(
    multipliers: Sequence[int], res_blocks: int, attention: Sequence[str] = ATTENTION
) -> list[Row]:
    """Autoencoder: `res_blocks` residual blocks a level in the encoder, one more in the decoder."""
    return list(_vae_rows(tuple(multipliers), res_blocks, attention))


def _vae_rows(
    multipliers: tuple[int, ...], res_blocks: int, attention: Sequence[str]
) -> Iterator[Row]:
    coarsest = len(multipliers) - 1
    yield from layer_rows("quant_conv", "encoder.to_moments")
    yield from layer_rows("post_quant_conv", "decoder.from_latent")
    for side in ("encoder", "decoder"):
        yield from layer_rows(f"{side}.conv_in", f"{side}.conv_in")
        yield from _vae_res(f"{side}.mid.block_1", f"{side}.middle.res_1", skip=False)
        yield from layer_rows(f"{side}.mid.attn_1.norm", f"{side}.middle.attention.norm")
        for source, name in zip(attention, ("to_q", "to_k", "to_v", "to_out"), strict=True):
            yield from layer_rows(f"{side}.mid.attn_1.{source}", f"{side}.middle.attention.{name}")
        yield from _vae_res(f"{side}.mid.block_2", f"{side}.middle.res_2", skip=False)
        yield from layer_rows(f"{side}.norm_out", f"{side}.norm_out")
        yield from layer_rows(f"{side}.conv_out", f"{side}.conv_out")
    for level in range(coarsest + 1):
        for i in range(res_blocks):
            widens = i == 0 and level > 0 and multipliers[level] != multipliers[level - 1]
            yield from _vae_res(
                f"encoder.down.{level}.block.{i}", f"encoder.levels.{level}.res.{i}", skip=widens
            )
        if level < coarsest:
            yield from layer_rows(
                f"encoder.down.{level}.downsample.conv", f"encoder.levels.{level}.downsample.conv"
            )
        # The layout numbers the decoder's levels from the finest; here they stand in the order of
        # the pass.
        up = coarsest - level
        for i in range(res_blocks + 1):
            narrows = i == 0 and level < coarsest and multipliers[level] != multipliers[level + 1]
            yield from _vae_res(
                f"decoder.up.{level}.block.{i}", f"decoder.levels.{up}.res.{i}", skip=narrows
            )
        if level > 0:
            yield from layer_rows(
                f"decoder.up.{level}.upsample.conv", f"decoder.levels.{up}.upsample.conv"
            )


def _vae_res(source: str, target: str, skip: bool) -> Iterator[Row]:
    yield from layer_rows(f"{source}.norm1", f"{target}.norm_1")
    yield from layer_rows(f"{source}.conv1", f"{target}.conv_1")
    yield from layer_rows(f"{source}.norm2", f"{target}.norm_2")
    yield from layer_rows(f"{source}.conv2", f"{target}.conv_2")
    if skip:
        yield from layer_rows(f"{source}.nin_shortcut", f"{target}.skip")


def unet_table(
    multipliers: Sequence[int], res_blocks: int, attention_levels: Sequence[int]
) -> list[Row]:
    """UNet: `res_blocks` residual blocks a level on the way down, one more on the way up."""
    return list(_unet_rows(tuple(multipliers), res_blocks, frozenset(attention_levels)))


def _unet_rows(
    multipliers: tuple[int, ...], res_blocks: int, attention_levels: frozenset[int]
) -> Iterator[Row]:
    coarsest = len(multipliers) - 1
    yield from layer_rows("time_embed.0", "time_embedding.linear_1")
    yield from layer_rows("time_embed.2", "time_embedding.linear_2")
    yield from layer_rows("input_blocks.0.0", "conv_in")
    yield from layer_rows("out.0", "norm_out")
    yield from layer_rows("out.2", "conv_out")
    yield from _unet_res("middle_block.0", "middle.res_1", skip=False)
    yield from transformer_rows("middle_block.1", "middle.attention")
    yield from _unet_res("middle_block.2", "middle.res_2", skip=False)
    block = 1
    for level in range(coarsest + 1):
        for i in range(res_blocks):
            widens = i == 0 and level > 0 and multipliers[level] != multipliers[level - 1]
            yield from _unet_res(f"input_blocks.{block}.0", f"down.{level}.res.{i}", skip=widens)
            if level in attention_levels:
                yield from transformer_rows(
                    f"input_blocks.{block}.1", f"down.{level}.attention.{i}"
                )
            block += 1
        if level < coarsest:
            yield from layer_rows(f"input_blocks.{block}.0.op", f"down.{level}.downsample.conv")
            block += 1
    block = 0
    for level in range(coarsest, -1, -1):
        up = coarsest - level
        for i in range(res_blocks + 1):
            # A skip connection is concatenated before every one of these blocks, so each changes
            # the width.
            yield from _unet_res(f"output_blocks.{block}.0", f"up.{up}.res.{i}", skip=True)
            if level in attention_levels:
                yield from transformer_rows(f"output_blocks.{block}.1", f"up.{up}.attention.{i}")
            if i == res_blocks and level > 0:
                after = 2 if level in attention_levels else 1
                yield from layer_rows(
                    f"output_blocks.{block}.{after}.conv", f"up.{up}.upsample.conv"
                )
            block += 1


def _unet_res(source: str, target: str, skip: bool) -> Iterator[Row]:
    yield from layer_rows(f"{source}.in_layers.0", f"{target}.norm_1")
    yield from layer_rows(f"{source}.in_layers.2", f"{target}.conv_1")
    yield from layer_rows(f"{source}.emb_layers.1", f"{target}.time_projection")
    yield from layer_rows(f"{source}.out_layers.0", f"{target}.norm_2")
    yield from layer_rows(f"{source}.out_layers.3", f"{target}.conv_2")
    if skip:
        yield from layer_rows(f"{source}.skip_connection", f"{target}.skip")


def transformer_rows(source: str, target: str) -> Iterator[Row]:
    """Rows of a spatial transformer."""
    block = f"{source}.transformer_blocks.0"
    yield from layer_rows(f"{source}.norm", f"{target}.norm")
    yield from layer_rows(f"{source}.proj_in", f"{target}.proj_in")
    yield from layer_rows(f"{block}.norm1", f"{target}.norm_1")
    yield from _attention(f"{block}.attn1", f"{target}.self_attention")
    yield from layer_rows(f"{block}.norm2", f"{target}.norm_2")
    yield from _attention(f"{block}.attn2", f"{target}.cross_attention")
    yield from layer_rows(f"{block}.norm3", f"{target}.norm_3")
    yield from layer_rows(f"{block}.ff.net.0.proj", f"{target}.feed_forward.proj_in")
    yield from layer_rows(f"{block}.ff.net.2", f"{target}.feed_forward.proj_out")
    yield from layer_rows(f"{source}.proj_out", f"{target}.proj_out")


def _attention(source: str, target: str) -> Iterator[Row]:
    yield from _projection(f"{source}.to_q", f"{target}.to_q")
    yield from _projection(f"{source}.to_k", f"{target}.to_k")
    yield from _projection(f"{source}.to_v", f"{target}.to_v")
    yield from layer_rows(f"{source}.to_out.0", f"{target}.to_out")


def text_table(layers: int) -> list[Row]:
    """CLIP text tower, into open_clip's names under `tower`."""
    return list(_text_rows(layers))


def _text_rows(layers: int) -> Iterator[Row]:
    yield ("embeddings.token_embedding.weight",), "tower.token_embedding.weight"
    yield ("embeddings.position_embedding.weight",), "tower.positional_embedding"
    yield from layer_rows("final_layer_norm", "tower.ln_final")
    for i in range(layers):
        source, target = f"encoder.layers.{i}", f"tower.transformer.resblocks.{i}"
        for kind in ("weight", "bias"):
            qkv = tuple(f"{source}.self_attn.{name}_proj.{kind}" for name in "qkv")
            yield qkv, f"{target}.attn.in_proj_{kind}"
        yield from layer_rows(f"{source}.self_attn.out_proj", f"{target}.attn.out_proj")
        yield from layer_rows(f"{source}.layer_norm1", f"{target}.ln_1")
        yield from layer_rows(f"{source}.layer_norm2", f"{target}.ln_2")
        yield from layer_rows(f"{source}.mlp.fc1", f"{target}.mlp.c_fc")
        yield from layer_rows(f"{source}.mlp.fc2", f"{target}.mlp.c_proj")
