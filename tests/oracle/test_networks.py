"""The networks against diffusers' and transformers' on the same random weights."""

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from transformers import CLIPTextConfig, CLIPTextModel

from nti.config import ModelConfig
from nti.model import layouts
from oracle_unet import converted_unet, original_keys
from tiny import SD_LIKE, TINY, make_model
from tolerances import assert_close

CONFIGS = pytest.mark.parametrize("config", [TINY, SD_LIKE], ids=["embedded-like", "sd-v1-like"])


@CONFIGS
def test_unet_is_diffusers_unet(config: ModelConfig) -> None:
    model = make_model(config)
    theirs = converted_unet(model)
    g = torch.Generator().manual_seed(0)
    latent = torch.randn(3, 4, 16, 24, generator=g, dtype=torch.float64)
    context = torch.randn(3, 77, config.unet.context_dim, generator=g, dtype=torch.float64)
    timestep = torch.tensor([981, 1, 321])
    with torch.no_grad():
        expected = theirs(latent, timestep, context).sample
    assert_close(model.steps.noise(latent, timestep, context), expected)


@CONFIGS
def test_autoencoder_is_diffusers_autoencoder(config: ModelConfig) -> None:
    model = make_model(config)
    vae = config.vae
    theirs = AutoencoderKL(
        block_out_channels=vae.level_channels,
        layers_per_block=vae.res_blocks,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        norm_num_groups=vae.norm_groups,
    )
    theirs = theirs.double().eval()
    converted = convert_ldm_vae_checkpoint(original_keys(model), dict(theirs.config))
    theirs.load_state_dict(converted, strict=True)
    g = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 64, 96, generator=g, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        mean = theirs.encode(image).latent_dist.mean
        decoded = theirs.decode(mean).sample
        assert_close(model.vae.encode(image), mean * vae.scale)
        assert_close(model.vae.decode(mean * vae.scale), decoded)


def test_text_tower_is_transformers_text_model() -> None:
    model = make_model()
    text = TINY.text
    theirs = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=text.vocab_size,
            hidden_size=text.width,
            intermediate_size=4 * text.width,
            num_hidden_layers=text.layers,
            num_attention_heads=text.heads,
            hidden_act="quick_gelu",
        )
    )
    theirs = theirs.double().eval()
    prefix = layouts(TINY)["text"][0].prefix
    weights = {
        key.removeprefix(prefix): value
        for key, value in original_keys(model).items()
        if key.startswith(prefix)
    }
    if any(key.startswith("text_model.") for key in theirs.state_dict()):
        weights = {f"text_model.{key}": value for key, value in weights.items()}
    theirs.load_state_dict(weights, strict=True)
    prompts = ["", "a cat sitting next to a mirror"]
    with torch.no_grad():
        expected = theirs(model.tokenizer(prompts)).last_hidden_state
    assert_close(model.encode_text(prompts), expected)
