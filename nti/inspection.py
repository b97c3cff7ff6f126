"""What a file holds, in words: for `nti inspect`."""

from pathlib import Path

import torch

from nti.config import SD_V1, ModelConfig
from nti.inversion.record import Inversion
from nti.model import CONFIG_KEY, load_model
from nti.weights_loader import read_metadata

__all__ = ["describe_file"]


def describe_file(path: Path) -> str:
    """Describe a saved inversion or a checkpoint; ValueError for a file that is neither."""
    metadata = read_metadata(path)
    if "inversion" in metadata:
        return _describe_inversion(Inversion.load(path))
    config = ModelConfig.from_json(metadata[CONFIG_KEY]) if CONFIG_KEY in metadata else SD_V1
    model = load_model(path, device="cpu", dtype=torch.float32)
    networks = {"unet": model.unet, "autoencoder": model.vae, "text encoder": model.text}
    lines = [
        f"checkpoint of {config.name}, original Stable Diffusion v1 layout",
        f"trained at {config.image_size} px, default guidance {config.guidance_scale:g}",
    ]
    for name, network in networks.items():
        lines.append(f"{name}: {sum(p.numel() for p in network.parameters()):,} parameters")
    lines += [f"{key}: {value}" for key, value in sorted(metadata.items()) if key != CONFIG_KEY]
    return "\n".join(lines)


def _describe_inversion(inversion: Inversion) -> str:
    rounds = (~inversion.losses.isnan()).sum().item()
    height, width = inversion.latents.shape[-2:]
    return "\n".join(
        [
            f"inversion made with {inversion.model_name}",
            f"prompt: {inversion.prompt}",
            f"method: {inversion.method}, guidance {inversion.guidance_scale:g},"
            f" {inversion.steps} steps",
            f"latent: {height} x {width}",
            f"embeddings: {tuple(inversion.uncond.shape)} {inversion.uncond.dtype}",
            f"inner iterations: {rounds}",
        ]
    )
