"""Checkpoint files of a model in any layout, for the tests of loading."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from nti.model import StableDiffusion, layouts

NETWORKS = ("unet", "vae", "text")


def spelled(model: StableDiffusion, network: str, layout: int = 0) -> dict[str, Tensor]:
    """One network's weights under the keys of a layout, by its place in `layouts`."""
    chosen = layouts(model.config)[network][layout]
    state = {"unet": model.unet, "vae": model.vae, "text": model.text}[network].state_dict()
    keys = {}
    for sources, target in chosen.rows:
        for source, part in zip(sources, state[target].chunk(len(sources)), strict=True):
            keys[chosen.prefix + source] = part.contiguous()
    return keys


def single_file(
    model: StableDiffusion,
    path: Path,
    *,
    dtype: torch.dtype = torch.float32,
    text_layout: int = 0,
    extra: dict[str, Tensor] | None = None,
    without: str = " ",
    metadata: dict[str, str] | None = None,
) -> Path:
    """Write a whole checkpoint in the original layout, but the keys that begin with `without`."""
    tensors = spelled(model, "unet") | spelled(model, "vae")
    tensors |= spelled(model, "text", text_layout)
    kept = {k: v.to(dtype) for k, v in tensors.items() if not k.startswith(without)}
    save_file({**kept, **(extra or {})}, path, metadata)
    return path


def directory(
    model: StableDiffusion,
    path: Path,
    *,
    variant: str = "",
    vae_layout: int = 2,
    text_layout: int = 2,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write the folders that diffusers does; `variant` is `.fp16` or nothing."""
    for folder, network, layout, stem in (
        ("unet", "unet", 1, "diffusion_pytorch_model"),
        ("vae", "vae", vae_layout, "diffusion_pytorch_model"),
        ("text_encoder", "text", text_layout, "model"),
    ):
        (path / folder).mkdir(parents=True)
        tensors = {k: v.to(dtype) for k, v in spelled(model, network, layout).items()}
        save_file(tensors, path / folder / f"{stem}{variant}.safetensors")
    return path


def assert_same(model: StableDiffusion, expected: StableDiffusion) -> None:
    """Compare all weights exactly."""
    for name in NETWORKS:
        ours, theirs = (getattr(m, name).state_dict() for m in (model, expected))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
