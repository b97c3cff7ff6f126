"""Stable Diffusion v1 at its own size: diffusers and transformers write random weights in half
precision, `load_model` reads them, and the outputs agree in float32.

Theirs is gone before ours is loaded, so that both fit into 8 GB.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

import nti
from nti.config import SD_V1
from nti.inversion.methods import METHODS
from nti.networks.tokenizer import Tokenizer
from plain_loop import read_by
from tolerances import RELATIVE, assert_close, relative_error

PROMPTS = ["", "a cat sitting next to a mirror"]
TIMESTEPS = torch.tensor([981, 21])


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


LATENT, CONTEXT = normal(2, 4, 32, 32), normal(2, 77, 768)
IMAGE = normal(1, 3, 128, 128).tanh()


def fill(network: nn.Module) -> nn.Module:
    """Random weights of unit gain, no norm at its identity, all exact in half precision."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            bound = (3 / parameter[0].numel()) ** 0.5
            nn.init.uniform_(parameter, -bound, bound)
        else:
            nn.init.uniform_(parameter, 0.5, 1.5)
        parameter.data.copy_(parameter.data.half())
    return network.requires_grad_(False).eval()


def unet_output(folder: Path) -> dict[str, Tensor]:
    with torch.device("meta"):
        network = UNet2DConditionModel(cross_attention_dim=768)
    fill(network.to_empty(device="cpu"))
    expected = {"eps": network(LATENT, TIMESTEPS, CONTEXT).sample}
    network.half().save_pretrained(folder / "unet", variant="fp16")
    return expected


def vae_output(folder: Path) -> dict[str, Tensor]:
    network = AutoencoderKL(
        block_out_channels=SD_V1.vae.level_channels,
        layers_per_block=2,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
    )
    fill(network)
    mean = network.encode(IMAGE).latent_dist.mean
    expected = {"mean": mean, "image": network.decode(mean).sample}
    network.half().save_pretrained(folder / "vae", variant="fp16")
    return expected


def text_output(folder: Path) -> dict[str, Tensor]:
    config = CLIPTextConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        hidden_act="quick_gelu",
    )
    network = CLIPTextModel(config)
    fill(network)
    expected = {"states": network(Tokenizer()(PROMPTS)).last_hidden_state}
    network.half().save_pretrained(folder / "text_encoder", variant="fp16")
    return expected


@pytest.fixture(scope="module", autouse=True)
def both_cores() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def written() -> Iterator[tuple[Path, dict[str, Tensor]]]:
    """The directory that diffusers wrote, and what its networks made of the inputs."""
    writers: tuple[Callable[[Path], dict[str, Tensor]], ...] = unet_output, vae_output, text_output
    with TemporaryDirectory() as folder:  # two gigabytes, which pytest would keep
        with torch.no_grad():
            outputs = {k: v for write in writers for k, v in write(Path(folder)).items()}
        yield Path(folder), outputs


@pytest.fixture(scope="module")
def loaded(written: tuple[Path, dict[str, Tensor]]) -> nti.StableDiffusion:
    return nti.load_model(written[0], device="cpu", dtype=torch.float32)


def test_unet(loaded: nti.StableDiffusion, written: tuple[Path, dict[str, Tensor]]) -> None:
    with torch.no_grad():
        assert_close(loaded.steps.noise(LATENT, TIMESTEPS, CONTEXT), written[1]["eps"])


def test_encoder_mean(loaded: nti.StableDiffusion, written: tuple[Path, dict[str, Tensor]]) -> None:
    assert_close(loaded.encode_image(IMAGE), written[1]["mean"] * 0.18215)


def test_decoder(loaded: nti.StableDiffusion, written: tuple[Path, dict[str, Tensor]]) -> None:
    with torch.no_grad():
        image = loaded.vae.decode(written[1]["mean"] * 0.18215)
    assert_close(image, written[1]["image"])


def test_text_encoder(loaded: nti.StableDiffusion, written: tuple[Path, dict[str, Tensor]]) -> None:
    assert_close(loaded.encode_text(PROMPTS), written[1]["states"])


PROMPT, TARGET = "a cat sitting next to a mirror", "a dog sitting next to a mirror"
SMALL = IMAGE[..., :64, :64]


AMPLIFIED = 10
"""What guidance and the first of two steps, from t = 501 to 1, make of the noise's rounding."""


@pytest.mark.parametrize("name", METHODS)
def test_every_method(loaded: nti.StableDiffusion, name: str) -> None:
    """An image of 64 pixels is inverted in two timesteps, and sampled again."""
    settings = {"method": name, "guidance_scale": 2.0, **read_by(name, inner_steps=1)}
    inversion = nti.invert(loaded, SMALL, PROMPT, steps=2, **settings)
    again = nti.reconstruct_latents(loaded, inversion)[:, 0]
    assert inversion.latents.std() > 0.1
    assert relative_error(again, inversion.latents) < AMPLIFIED * RELATIVE[torch.float32]


@pytest.fixture(scope="module")
def inversion(loaded: nti.StableDiffusion) -> nti.Inversion:
    return nti.invert(loaded, SMALL, PROMPT, method="negative-prompt", steps=2)


EDITORS: dict[str, dict[str, Any]] = {
    "p2p": {},
    "sdedit": {},
    "masked": {"mask": torch.arange(64).expand(64, 64) < 24},
    "diffedit": {},
    "masactrl": {},
    "imagic": {"embedding_steps": 1, "model_steps": 0},
    "unitune": {"iterations": 1, "batch": 1},
}
"""With what makes them short. Imagic's second stage takes 12.8 GiB, more than a test may."""


@pytest.mark.parametrize("name", nti.EDITORS)
def test_every_editor(loaded: nti.StableDiffusion, inversion: nti.Inversion, name: str) -> None:
    editor = nti.EDITORS[name].function
    result = editor(loaded, inversion, TARGET, **EDITORS[name])
    assert result.images[0].size == (64, 64) and result.latents[-1].isfinite().all()
    assert relative_error(result.latents[-1], inversion.pivot[-1:]) > 1e-3
