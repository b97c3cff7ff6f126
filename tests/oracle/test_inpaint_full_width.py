"""The inpainting UNet at its own size: diffusers writes random weights of nine input channels in
half precision, ours reads them, and the outputs agree in float32.

Theirs is gone before ours is read, so that both fit into 8 GB.
"""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from nti.weights_loader import is_inpainting, read_header, read_networks

from nti.config import SD_V1
from nti.model import layouts, parameter_shapes, skeletons
from nti.networks.unet import UNet
from test_full_width import CONTEXT, LATENT, TIMESTEPS, both_cores, fill
from tolerances import assert_close

__all__ = ["both_cores"]  # a fixture that this module uses, too

BESIDE = torch.randn(2, 5, 32, 32, generator=torch.Generator().manual_seed(0))
INPUT = torch.cat([LATENT, BESIDE], dim=1)


def written(path: Path) -> torch.Tensor:
    """What diffusers' network makes of the inputs, once its weights are in a file."""
    with torch.device("meta"):
        network = UNet2DConditionModel(in_channels=9, cross_attention_dim=768)
    fill(network.to_empty(device="cpu"))
    with torch.no_grad():
        expected = network(INPUT, TIMESTEPS, CONTEXT).sample
    network.half().save_pretrained(path)
    return expected


def test_unet_of_nine_channels(tmp_path: Path) -> None:
    expected = written(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    assert is_inpainting({key: each.shape for key, each in read_header(file).items()})
    config = SD_V1.for_inpainting()
    unet = skeletons(config)["unet"]
    parameters = read_networks(
        {"unet": file}, layouts(config), {"unet": parameter_shapes(unet)},
        dtypes={"unet": torch.float32}, device=torch.device("cpu"), channels_last=("unet",),
    )  # fmt: skip
    unet.load_state_dict(parameters["unet"], assign=True)
    assert isinstance(unet, UNet)
    with torch.no_grad():
        found, _ = unet.requires_grad_(False).eval()(INPUT, TIMESTEPS, CONTEXT)
    assert_close(found, expected)
