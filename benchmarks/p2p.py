"""Section `edit`: a word-for-word edit of ten steps with the default windows, against the published
batch of four rows with every attention map in memory. Decoding is the same for both and left out.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cases import random_model
from nti import edit
from nti.config import ModelConfig
from nti.editing.alignment import align
from nti.inversion.record import Inversion
from nti.model import StableDiffusion
from peers import PublishedBatch, diffusers_unet
from roofline import forward_tflop
from rows import Row, make_row
from timing import interleaved

__all__ = ["edits"]

STEPS, W = 10, 7.5
CROSS, SELF = int(0.8 * (STEPS + 1)), int(0.5 * STEPS)
"""Steps of the default windows."""
SOURCE, EDITED = "a cat sitting next to a mirror", "a tiger sitting next to a mirror"


class WithoutDecoder(StableDiffusion):
    """A model whose images are black."""

    def decode_latent(self, latent: Tensor) -> Tensor:
        """Return (B, 3, 8, 8) of -1."""
        return latent.new_full((len(latent), 3, 8, 8), -1.0)


@dataclass(frozen=True)
class Published:
    """The edit as it is published, on the record's embeddings."""

    model: StableDiffusion
    batch: PublishedBatch
    inversion: Inversion

    def run(self) -> Tensor:
        """Return the last latents of source and edit."""
        model, schedule = self.model, self.model.schedule(STEPS)
        encode = model.tokenizer.encode
        alignment = align("replace", encode(SOURCE), encode(EDITED))
        mix = alignment.mapping.to(model.device, model.dtype)
        cond = model.encode_text([SOURCE, EDITED])
        latents = self.inversion.latents[:1].to(model.device).repeat(2, 1, 1, 1)
        with self.batch.installed():
            for i, timestep in enumerate(schedule.timesteps):
                self.batch.mix = mix if i < CROSS else None
                self.batch.inject = i < SELF
                uncond = self.inversion.uncond[i].to(model.device).expand(2, -1, -1)
                context = torch.cat([uncond, cond])
                latents = self.batch.step(latents, timestep, context, schedule.coefficients(i), W)
        return latents


def edits(
    config: ModelConfig, side: int, repeats: int, dtype: torch.dtype, device: torch.device
) -> list[Row]:
    """Time both on an image of `side` pixels."""
    whole = random_model(config, dtype, device, whole=True)
    model = WithoutDecoder(config, whole.unet, whole.vae, whole.text, whole.tokenizer)
    inversion = _random_inversion(model, side)
    finest = (side // config.vae.downsampling // 2) ** 2
    published = Published(model, PublishedBatch(diffusers_unet(model.unet), finest), inversion)
    same = edit(model, inversion, EDITED, mode="replace", replay=False).latents[-1]
    theirs = published.run()[1:].cpu()
    error = float((same - theirs).norm() / (theirs - inversion.latents[:1]).norm())
    if error > 1e-2 and dtype == torch.float32:
        raise RuntimeError(f"edit: the latent differs by {error:.1e} of the published batch's")
    times = interleaved(
        {
            "published batch": published.run,
            "nti": lambda: edit(model, inversion, EDITED, mode="replace"),
        },
        repeats,
        warmup=0,
    )
    case = f"{config.unet.channels} channels, {side} px, {STEPS} steps"
    # The edit's two rows, and the source's while its attention is needed.
    tflop = (2 * STEPS + max(CROSS, SELF)) * forward_tflop(config, side)
    unit = "from the published batch, without replay"
    return [
        make_row(
            "edit", name, case, dtype=dtype, milliseconds=each,
            quality=error if name == "nti" else 0.0, unit=unit if name == "nti" else "",
            tflop=tflop,
        )
        for name, each in times.items()
    ]  # fmt: skip


def _random_inversion(model: StableDiffusion, side: int) -> Inversion:
    """A record of the right shapes: how long an edit takes does not depend on what is in it."""
    g = torch.Generator().manual_seed(0)
    latent_side = side // model.config.vae.downsampling
    latents = torch.randn(STEPS + 1, 4, latent_side, latent_side, generator=g)
    null = model.encode_text([""]).float().cpu()
    return Inversion(
        prompt=SOURCE,
        method="ddim",
        guidance_scale=W,
        model_name=model.config.name,
        uncond=null.expand(STEPS, -1, -1).contiguous(),
        pivot=latents,
        latents=latents,
        losses=torch.zeros(STEPS, 0),
    )
