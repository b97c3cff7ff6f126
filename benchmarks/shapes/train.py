"""Train the embedded model from a seed: render, autoencoder, text tower and UNet, export.

    python benchmarks/shapes/train.py --out train --checkpoint weights_loader/shapes.safetensors

Every stage writes its state under `--out` and resumes from it, so an interrupted run goes on when
it is called again. On two CPU cores it takes about two hours.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from captions import VOCABULARY
from dataset import HELD_OUT, load_pixels
from nti.config import ModelConfig
from nti.model import CONFIG_KEY, layouts
from nti.networks.tokenizer import Tokenizer
from nti.networks.vae import VAE
from scene import SIZE, random_scene, render
from train_diffusion import (
    SCHEDULE,
    TEXT_CONFIG,
    UNET_CONFIG,
    Diffusion,
    encode_scenes,
    train_diffusion,
)
from train_vae import VAE_CONFIG, train_vae

COMMAND = "python benchmarks/shapes/train.py --out train --checkpoint shapes.safetensors"

GUIDANCE = 3.0
"""The default guidance scale, chosen from the rows of `evaluate.py guidance`."""


def model_config(scale: float, guidance_scale: float) -> ModelConfig:
    """Return the configuration of the embedded model, given what training found out."""
    return ModelConfig(
        name="shapes",
        image_size=SIZE,
        guidance_scale=guidance_scale,
        unet=UNET_CONFIG,
        vae=dataclasses.replace(VAE_CONFIG, scale=scale),
        text=TEXT_CONFIG,
        schedule=SCHEDULE,
        vocabulary=VOCABULARY,
    )


def export(
    vae: VAE, diffusion: Diffusion, config: ModelConfig, card: dict[str, object], path: Path
) -> None:
    """Write float16 weights in the original SD v1 key layout, the configuration in the metadata.

    Rows of the token table that no caption ever used are set to zero.
    """
    used = Tokenizer()([" ".join(VOCABULARY)]).unique()
    table = diffusion.text.tower.token_embedding.weight
    kept = torch.zeros_like(table)
    kept[used] = table[used]
    networks = {"unet": diffusion.unet, "vae": vae, "text": diffusion.text}
    tensors: dict[str, Tensor] = {}
    for name, (original, *_) in layouts(config).items():
        state = {**networks[name].state_dict(), "tower.token_embedding.weight": kept}
        for sources, target in original.rows:
            parts = state[target].chunk(len(sources))
            for source, part in zip(sources, parts, strict=True):
                tensors[original.prefix + source] = part.half().cpu().contiguous()
    metadata = {CONFIG_KEY: config.to_json(), "card": json.dumps(card)}
    save_file(tensors, path, metadata=metadata)
    print(f"wrote {path}: {path.stat().st_size / 1e6:.2f} MB")


def main() -> None:
    """Run all stages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the stages' states")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the file to write")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--guidance", type=float, default=GUIDANCE, help="the model's default w")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=48_000)
    parser.add_argument("--vae-steps", type=int, default=6_500)
    parser.add_argument("--steps", type=int, default=11_000)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(options.device)
    pixels = load_pixels(options.out / "scenes.npy", options.scenes)
    held_out = np.stack([render(random_scene(seed)) for seed in HELD_OUT[:32]])
    vae, vae_seconds = train_vae(
        pixels,
        held_out,
        steps=options.vae_steps,
        batch=8,
        peak=1.5e-3,
        seed=options.seed,
        directory=options.out,
        device=device,
    )
    latents, scale = encode_scenes(vae, pixels, options.out / "latents.pt", device)
    diffusion, seconds = train_diffusion(
        latents,
        steps=options.steps,
        batch=32,
        peak=1e-3,
        seed=options.seed,
        directory=options.out,
        device=device,
    )
    card: dict[str, object] = {
        "data": f"{options.scenes} scenes rendered by benchmarks/shapes/scene.py",
        "command": COMMAND,
        "seed": options.seed,
        "steps": {"vae": options.vae_steps, "diffusion": options.steps},
        "seconds": {"vae": round(vae_seconds), "diffusion": round(seconds)},
        "torch": torch.__version__,
        "device": options.device,
    }
    export(vae, diffusion, model_config(scale, options.guidance), card, options.checkpoint)


if __name__ == "__main__":
    main()
