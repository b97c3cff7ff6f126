"""diffusers' UNet with a model's weights, renamed by diffusers' own conversion."""

from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from torch import Tensor

from checkpoints import spelled
from nti.config import ModelConfig
from nti.model import StableDiffusion


def original_keys(model: StableDiffusion) -> dict[str, Tensor]:
    """The model's weights in the original layout."""
    return spelled(model, "unet") | spelled(model, "vae") | spelled(model, "text")


def theirs_unet(config: ModelConfig) -> UNet2DConditionModel:
    unet = config.unet
    levels = range(len(unet.channel_multipliers))
    attends = [level in unet.attention_levels for level in levels]
    return UNet2DConditionModel(
        in_channels=unet.input_channels,
        block_out_channels=unet.level_channels,
        layers_per_block=unet.res_blocks,
        down_block_types=["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        up_block_types=["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]],
        cross_attention_dim=unet.context_dim,
        attention_head_dim=unet.heads,  # what it calls the number of heads
        norm_num_groups=unet.norm_groups,
    )


def converted_unet(model: StableDiffusion) -> UNet2DConditionModel:
    """Their network with our weights, in float64, frozen."""
    theirs = theirs_unet(model.config).double().eval().requires_grad_(False)
    converted = convert_ldm_unet_checkpoint(original_keys(model), dict(theirs.config))
    theirs.load_state_dict(converted, strict=True)
    return theirs
