"""Section `edit`: a word-for-word edit with the default windows, against the published batch of
four rows with every attention map in memory: ten steps, on CUDA all fifty, and there captured as a
CUDA graph, too. Decoding is the same for all and left out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from cases import random_model, refuse_wrong
from nti import edit_latents
from nti.config import ModelConfig
from nti.editing.alignment import align
from nti.editing.plan import EditPlan
from nti.inversion.inversion import Inversion
from nti.model import StableDiffusion
from peers import PublishedBatch, diffusers_unet
from roofline import forward_tflop
from rows import Row, make_row
from timing import interleaved

__all__ = ["edits"]

W = 7.5
SOURCE, EDITED = "a cat sitting next to a mirror", "a tiger sitting next to a mirror"


@dataclass(frozen=True)
class Published:
    """The edit as it is published, on the inversion's embeddings."""

    model: StableDiffusion
    batch: PublishedBatch
    inversion: Inversion

    def run(self) -> Tensor:
        """Return the last latents of source and edit."""
        model, schedule = self.model, self.model.schedule(self.inversion.steps)
        cross, inject = default_windows(schedule.steps)
        encode = model.tokenizer.encode
        alignment = align("replace", encode(SOURCE), encode(EDITED))
        mix = alignment.mapping.to(model.device, model.dtype)
        cond = model.encode_text([SOURCE, EDITED])
        latents = self.inversion.latents[:1].to(model.device).repeat(2, 1, 1, 1)
        with self.batch.installed():
            for i, timestep in enumerate(schedule.timesteps):
                self.batch.mix = mix if i < cross else None
                self.batch.inject = i < inject
                uncond = self.inversion.uncond[i].to(model.device).expand(2, -1, -1)
                context = torch.cat([uncond, cond])
                latents = self.batch.step(latents, timestep, context, schedule.coefficients(i), W)
        return latents


def default_windows(steps: int) -> tuple[int, int]:
    """In how many steps the source's cross-attention and self-attention are taken by default."""
    return int(0.8 * (steps + 1)), int(0.5 * steps)


def edits(
    config: ModelConfig, side: int, repeats: int, dtype: torch.dtype, device: torch.device
) -> list[Row]:
    """Time them on an image of `side` pixels."""
    steps = 50 if device.type == "cuda" else 10
    model = random_model(config, dtype, device, whole=True)
    inversion = _random_inversion(model, side, steps)
    finest = (side // config.vae.downsampling // 2) ** 2
    published = Published(model, PublishedBatch(diffusers_unet(model.unet), finest), inversion)
    ours: dict[str, StableDiffusion] = {"nti": model}
    if device.type == "cuda":
        ours["nti, CUDA graph"] = model.with_execution("cuda-graph")
    plan = EditPlan.create(model.tokenizer, SOURCE, EDITED, steps=steps, mode="replace")
    theirs = published.run()[1:].cpu()
    errors = {}
    for name, each in ours.items():
        same = edit_latents(each, inversion, plan, replay=False).latents[-1].cpu()
        errors[name] = float((same - theirs).norm() / (theirs - inversion.latents[:1]).norm())
        refuse_wrong(f"edit, {name}", errors[name], dtype, 1e-2)
    calls: dict[str, Callable[[], object]] = {"published batch": published.run}
    for name, each in ours.items():
        calls[name] = partial(_planned, each, inversion)
    # On CUDA the first turn captures.
    times = interleaved(calls, repeats, warmup=int(device.type == "cuda"))
    case = f"{config.unet.channels} channels, {side} px, {steps} steps"
    # The edit's two rows, and the source's while its attention is needed.
    tflop = (2 * steps + max(default_windows(steps))) * forward_tflop(config, side)
    unit = "from the published batch, without replay"
    return [
        make_row(
            "edit", name, case, dtype=dtype, milliseconds=each,
            quality=errors.get(name, 0.0), unit=unit if name in errors else "",
            tflop=tflop,
        )
        for name, each in times.items()
    ]  # fmt: skip


def _planned(model: StableDiffusion, inversion: Inversion) -> Tensor:
    """Plan and edit, as `nti.edit` does; return the last latents."""
    plan = EditPlan.create(model.tokenizer, SOURCE, EDITED, steps=inversion.steps, mode="replace")
    return edit_latents(model, inversion, plan).latents[-1].cpu()


def _random_inversion(model: StableDiffusion, side: int, steps: int) -> Inversion:
    """An inversion of the right shapes: how long an edit takes does not depend on what is in it."""
    g = torch.Generator().manual_seed(0)
    latent_side = side // model.config.vae.downsampling
    latents = torch.randn(steps + 1, 4, latent_side, latent_side, generator=g)
    null = model.encode_text([""]).float().cpu()
    return Inversion(
        prompt=SOURCE,
        method="ddim",
        guidance_scale=W,
        model_name=model.config.name,
        uncond=null.expand(steps, -1, -1).contiguous(),
        pivot=latents,
        latents=latents,
        losses=torch.zeros(steps, 0),
    )
