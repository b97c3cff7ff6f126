"""Stage 1: the autoencoder, on rendered scenes."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nti.config import VAEConfig
from nti.networks.vae import VAE
from optimization import Trainer

__all__ = ["VAE_CONFIG", "psnr", "to_image", "train_vae"]

VAE_CONFIG = VAEConfig(
    image_channels=3,
    latent_channels=4,
    channels=16,
    channel_multipliers=(1, 2, 4, 6),
    res_blocks=1,
    norm_groups=8,
    scale=1.0,
)
"""`scale` is set after training, to 1/std of the latents."""

KL_WEIGHT = 3e-4
"""Of the mean KL a latent element; keeps the posterior a few per cent wide, so the decoder forgives
small errors.
"""


def to_image(pixels: NDArray[np.uint8], device: torch.device) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in [-1, 1]."""
    return torch.tensor(pixels).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def psnr(a: Tensor, b: Tensor) -> float:
    """Mean PSNR in dB of images (B, 3, H, W) in [-1, 1]."""
    errors = (a.clamp(-1, 1) - b).square().flatten(1).mean(dim=1) / 4.0
    return float((-10 * errors.log10()).mean())


def train_vae(
    pixels: NDArray[np.uint8],
    held_out: NDArray[np.uint8],
    *,
    steps: int,
    batch: int,
    peak: float,
    seed: int,
    directory: Path,
    device: torch.device,
) -> tuple[VAE, float]:
    """Train from `seed` (or resume); return the averaged autoencoder and the seconds it took.

    bfloat16 autocast, but float32 over the last tenth of the steps.
    """
    torch.manual_seed(seed)
    vae = VAE(VAE_CONFIG).to(device)
    trainer = Trainer(vae, steps, peak, directory / "vae.pt")
    test = to_image(held_out, device)
    while trainer.step < steps:
        draw = np.random.default_rng([seed, 10, trainer.step])
        image = to_image(pixels[draw.integers(0, len(pixels), batch)], device)
        torch.manual_seed(hash((seed, trainer.step)) & 0x7FFFFFFF)
        with torch.autocast(device.type, torch.bfloat16, enabled=trainer.step < 0.9 * steps):
            mean, log_variance = vae.moments(image)
            latent = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
            decoded = vae.decoder(latent).float()
        mean, log_variance = mean.float(), log_variance.float()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean()
        loss = F.mse_loss(decoded, image) + 0.1 * F.l1_loss(decoded, image) + KL_WEIGHT * kl
        trainer.update(loss)
        if trainer.step % 250 == 0 or trainer.step == steps:
            averaged = averaged_vae(trainer, device)
            with torch.no_grad():
                score = psnr(averaged.decode(averaged.encode(test)), test)
            trainer.save()
            print(
                f"vae {trainer.step}/{steps} loss {loss.item():.5f} held-out {score:.2f} dB"
                f" {trainer.elapsed():.0f} s",
                flush=True,
            )
    return averaged_vae(trainer, device), trainer.elapsed()


def averaged_vae(trainer: Trainer, device: torch.device) -> VAE:
    """Return a frozen autoencoder with the averaged weights."""
    vae = VAE(VAE_CONFIG).to(device)
    vae.load_state_dict(trainer.average)
    return vae.requires_grad_(False).eval()
