"""Stage 2: the text tower and the UNet together, on the latents of the same scenes."""

import hashlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from captions import training_caption
from nti.config import ScheduleConfig, TextConfig, UNetConfig
from nti.networks.text_encoder import TextEncoder
from nti.networks.tokenizer import Tokenizer
from nti.networks.unet import UNet
from nti.networks.vae import VAE
from nti.sampling.schedule import alpha_bars
from optimization import Trainer
from scene import random_scene
from train_vae import to_image

__all__ = [
    "SCHEDULE",
    "TEXT_CONFIG",
    "UNET_CONFIG",
    "Diffusion",
    "encode_scenes",
    "train_diffusion",
]

TEXT_CONFIG = TextConfig(vocab_size=49408, context_length=77, width=64, heads=4, layers=3)
UNET_CONFIG = UNetConfig(
    latent_channels=4,
    channels=64,
    channel_multipliers=(1, 2, 2),
    res_blocks=1,
    attention_levels=(0, 1, 2),
    heads=4,
    context_dim=64,
    norm_groups=16,
    self_injection_level=0,
    word_map_level=1,
)
SCHEDULE = ScheduleConfig(train_steps=1000, beta_start=0.00085, beta_end=0.012)

OFFSET_NOISE = 0.1
"""Deviation of noise that is one value per channel. alpha_bar_T is 0.0058, and the mean over 16x16
places still shows the background there: blurring it makes the model ask the caption instead."""

MIN_SNR = 5.0
"""Where the signal-to-noise ratio exceeds this, the loss counts less: what the caption decides is
decided at higher noise (Hang et al. 2023, section 3.4)."""

BACKENDS = {
    # On the CPU the fused kernel's backward pass takes as long as everything else together.
    "cpu": [SDPBackend.MATH],
    "cuda": [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
}


class Diffusion(nn.Module):
    """What stage 2 trains: eps_theta(z_t, t, psi(P))."""

    def __init__(self) -> None:
        super().__init__()
        self.text = TextEncoder(TEXT_CONFIG)
        self.unet = UNet(UNET_CONFIG)

    def forward(self, latent: Tensor, timestep: Tensor, tokens: Tensor) -> Tensor:
        """Predict the noise (B, 4, h, w) of latents at timesteps (B,) under tokens (B, 77)."""
        eps: Tensor = self.unet(latent, timestep, self.text(tokens))[0]
        return eps


def encode_scenes(
    vae: VAE, pixels: NDArray[np.uint8], path: Path, device: torch.device
) -> tuple[Tensor, float]:
    """Return all latents (N, 4, h, w) scaled to unit deviation, and the scale; cached."""
    fingerprint = _fingerprint(vae)
    known = torch.load(path, weights_only=True) if path.exists() else {}
    if known.get("vae") != fingerprint:
        means = []
        with torch.no_grad():
            for start in range(0, len(pixels), 64):
                mean, _ = vae.moments(to_image(pixels[start : start + 64], device))
                means.append(mean.cpu())
        known = {"vae": fingerprint, "means": torch.cat(means)}
        part = path.with_suffix(".part")
        torch.save(known, part)
        part.rename(path)
    latents: Tensor = known["means"]
    scale = 1.0 / float(latents.std())
    return latents * scale, scale


def _fingerprint(vae: VAE) -> str:
    """Tell one autoencoder's weights from another's, so that no stale latents are read."""
    digest = hashlib.sha256()
    for value in vae.state_dict().values():
        digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()


def train_diffusion(
    latents: Tensor,
    *,
    steps: int,
    batch: int,
    peak: float,
    seed: int,
    directory: Path,
    device: torch.device,
) -> tuple[Diffusion, float]:
    """Train from `seed` (or resume); return the averaged networks and the seconds it took."""
    torch.manual_seed(seed)
    model = Diffusion().to(device, memory_format=torch.channels_last)
    trainer = Trainer(model, steps, peak, directory / "diffusion.pt", decay=0.9995)
    tokenizer = Tokenizer()
    scenes = [random_scene(i) for i in range(len(latents))]
    alpha_bar = alpha_bars(SCHEDULE).float().to(device)
    known: dict[str, Tensor] = {}
    running = 0.0
    while trainer.step < steps:
        draw = np.random.default_rng([seed, 20, trainer.step])
        index = draw.integers(0, len(latents), batch)
        captions = [training_caption(scenes[i], draw) for i in index]
        for caption in captions:
            if caption not in known:
                known[caption] = tokenizer([caption])[0]
        tokens = torch.stack([known[c] for c in captions]).to(device)
        timestep = torch.from_numpy(draw.integers(0, SCHEDULE.train_steps, batch)).to(device)
        latent = latents[index].to(device)
        eps = torch.from_numpy(draw.standard_normal(latent.shape, dtype=np.float32))
        offset = draw.standard_normal((*latent.shape[:2], 1, 1), dtype=np.float32)
        eps = (eps + OFFSET_NOISE * torch.from_numpy(offset)).to(device)
        a = alpha_bar[timestep][:, None, None, None]
        noisy = a.sqrt() * latent + (1 - a).sqrt() * eps
        with (
            torch.autocast(device.type, torch.bfloat16, enabled=trainer.step < 0.95 * steps),
            sdpa_kernel(BACKENDS[device.type]),
        ):
            predicted = model(noisy, timestep, tokens)
        error = F.mse_loss(predicted.float(), eps, reduction="none").mean(dim=(1, 2, 3))
        snr = alpha_bar[timestep] / (1 - alpha_bar[timestep])
        loss = (error * (MIN_SNR / snr).clamp(max=1.0)).mean()
        trainer.update(loss)
        running += loss.item()
        if trainer.step % 250 == 0 or trainer.step == steps:
            trainer.save()
            print(
                f"diffusion {trainer.step}/{steps} loss {running / 250:.5f}"
                f" {trainer.elapsed():.0f} s",
                flush=True,
            )
            running = 0.0
    averaged = Diffusion().to(device)
    averaged.load_state_dict(trainer.average)
    return averaged.requires_grad_(False).eval(), trainer.elapsed()
