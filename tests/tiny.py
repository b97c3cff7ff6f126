"""A tiny model of random weights in SD v1's architecture, for tests of the algorithm."""

import dataclasses

import torch

from nti.config import SD_V1, ModelConfig, TextConfig, UNetConfig, VAEConfig
from nti.model import StableDiffusion
from nti.networks.text_encoder import TextEncoder
from nti.networks.tokenizer import Tokenizer
from nti.networks.unet import UNet
from nti.networks.vae import VAE

TINY = dataclasses.replace(
    SD_V1,
    name="tiny",
    image_size=64,
    unet=UNetConfig(
        latent_channels=4,
        channels=16,
        channel_multipliers=(1, 2),
        res_blocks=1,
        attention_levels=(0, 1),
        heads=2,
        context_dim=24,
        norm_groups=8,
        self_injection_level=1,
        word_map_level=0,
    ),
    vae=VAEConfig(
        image_channels=3,
        latent_channels=4,
        channels=8,
        channel_multipliers=(1, 1, 2, 2),
        res_blocks=1,
        norm_groups=4,
        scale=0.5,
    ),
    text=TextConfig(vocab_size=49408, context_length=77, width=24, heads=2, layers=2),
)

SD_LIKE = dataclasses.replace(
    TINY,
    unet=dataclasses.replace(
        TINY.unet, channel_multipliers=(1, 2, 4, 4), res_blocks=2, attention_levels=(0, 1, 2)
    ),
    vae=dataclasses.replace(TINY.vae, channel_multipliers=(1, 2, 4, 4), res_blocks=2),
)
"""As many levels and blocks as SD v1."""


V_TINY = dataclasses.replace(
    TINY, schedule=dataclasses.replace(TINY.schedule, prediction="v_prediction")
)
"""Its UNet predicts v."""


INPAINTING = TINY.for_inpainting()
"""Its UNet takes a mask and a masked image, too."""


def make_model(
    config: ModelConfig = TINY,
    dtype: torch.dtype = torch.float64,
    *,
    backend: str = "reference",
    recompute: bool = False,
) -> StableDiffusion:
    """Random weights, the same in every run, frozen; attention differs between tokens."""
    torch.manual_seed(0)
    unet = UNet(config.unet, schedule=config.schedule, backend=backend, recompute=recompute)
    networks = unet, VAE(config.vae), TextEncoder(config.text)
    for network in networks:
        for name, parameter in network.named_parameters():
            if "norm" not in name and "ln_" not in name:
                fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
                torch.nn.init.normal_(parameter, std=fan_in**-0.5)
        network.to(dtype).requires_grad_(False).eval()
    embedding = networks[2].tower.token_embedding.weight
    embedding.copy_(torch.randn(embedding.shape, dtype=torch.float64))  # the same in every dtype
    unet, vae, text = networks
    unet.to(memory_format=torch.channels_last)
    return StableDiffusion(config, unet, vae, text, Tokenizer())
