"""The key layout of a diffusers directory (`unet/`, `vae/`), as rename tables into this project's
parameter names.

The blocks are numbered by level here, not in one run; the inside of a transformer is spelled as in
the original layout. The text encoder's table is the original's, too: both are transformers' names.
"""

from collections.abc import Iterator, Sequence

from nti.weights_loader.sd_v1 import Row, layer_rows, transformer_rows

__all__ = ["ATTENTION", "OLD_ATTENTION", "unet_table", "vae_table"]

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
OLD_ATTENTION = ("query", "key", "value", "proj_attn")
"""The autoencoder's q, k, v and output projection, in newer files and in older ones."""


def unet_table(
    multipliers: Sequence[int], res_blocks: int, attention_levels: Sequence[int]
) -> list[Row]:
    """UNet: `res_blocks` residual blocks a level on the way down, one more on the way up."""
    return list(_unet_rows(tuple(multipliers), res_blocks, frozenset(attention_levels)))


def _unet_rows(
    multipliers: tuple[int, ...], res_blocks: int, attention_levels: frozenset[int]
) -> Iterator[Row]:
    coarsest = len(multipliers) - 1
    yield from layer_rows("time_embedding.linear_1", "time_embedding.linear_1")
    yield from layer_rows("time_embedding.linear_2", "time_embedding.linear_2")
    yield from layer_rows("conv_in", "conv_in")
    yield from layer_rows("conv_norm_out", "norm_out")
    yield from layer_rows("conv_out", "conv_out")
    yield from _unet_res("mid_block.resnets.0", "middle.res_1", skip=False)
    yield from transformer_rows("mid_block.attentions.0", "middle.attention")
    yield from _unet_res("mid_block.resnets.1", "middle.res_2", skip=False)
    for level in range(coarsest + 1):
        source, target = f"down_blocks.{level}", f"down.{level}"
        for i in range(res_blocks):
            widens = i == 0 and level > 0 and multipliers[level] != multipliers[level - 1]
            yield from _unet_res(f"{source}.resnets.{i}", f"{target}.res.{i}", skip=widens)
            if level in attention_levels:
                yield from transformer_rows(f"{source}.attentions.{i}", f"{target}.attention.{i}")
        if level < coarsest:
            yield from layer_rows(f"{source}.downsamplers.0.conv", f"{target}.downsample.conv")
    for up, level in enumerate(range(coarsest, -1, -1)):
        source, target = f"up_blocks.{up}", f"up.{up}"
        for i in range(res_blocks + 1):
            yield from _unet_res(f"{source}.resnets.{i}", f"{target}.res.{i}", skip=True)
            if level in attention_levels:
                yield from transformer_rows(f"{source}.attentions.{i}", f"{target}.attention.{i}")
        if level > 0:
            yield from layer_rows(f"{source}.upsamplers.0.conv", f"{target}.upsample.conv")


def _unet_res(source: str, target: str, skip: bool) -> Iterator[Row]:
    yield from layer_rows(f"{source}.time_emb_proj", f"{target}.time_projection")
    yield from _res(source, target, skip)


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
        middle, target = f"{side}.mid_block", f"{side}.middle"
        yield from layer_rows(f"{side}.conv_in", f"{side}.conv_in")
        yield from _res(f"{middle}.resnets.0", f"{target}.res_1", skip=False)
        yield from layer_rows(f"{middle}.attentions.0.group_norm", f"{target}.attention.norm")
        for source, name in zip(attention, ("to_q", "to_k", "to_v", "to_out"), strict=True):
            yield from layer_rows(f"{middle}.attentions.0.{source}", f"{target}.attention.{name}")
        yield from _res(f"{middle}.resnets.1", f"{target}.res_2", skip=False)
        yield from layer_rows(f"{side}.conv_norm_out", f"{side}.norm_out")
        yield from layer_rows(f"{side}.conv_out", f"{side}.conv_out")
    # Both sides are numbered in the order of their pass, as they are here.
    for side, kind, blocks, order, resample in (
        ("encoder", "down", res_blocks, multipliers, "downsample"),
        ("decoder", "up", res_blocks + 1, multipliers[::-1], "upsample"),
    ):
        for level in range(coarsest + 1):
            source, target = f"{side}.{kind}_blocks.{level}", f"{side}.levels.{level}"
            for i in range(blocks):
                changes = i == 0 and level > 0 and order[level] != order[level - 1]
                yield from _res(f"{source}.resnets.{i}", f"{target}.res.{i}", skip=changes)
            if level < coarsest:
                yield from layer_rows(f"{source}.{resample}rs.0.conv", f"{target}.{resample}.conv")


def _res(source: str, target: str, skip: bool) -> Iterator[Row]:
    yield from layer_rows(f"{source}.norm1", f"{target}.norm_1")
    yield from layer_rows(f"{source}.conv1", f"{target}.conv_1")
    yield from layer_rows(f"{source}.norm2", f"{target}.norm_2")
    yield from layer_rows(f"{source}.conv2", f"{target}.conv_2")
    if skip:
        yield from layer_rows(f"{source}.conv_shortcut", f"{target}.skip")
