"""The published edit, written from the paper's equations with every attention map in memory.

A batch of 2 + 2E rows, [unconditional, conditional] of source and edits, whose conditional half is
edited map by map. Slow and plain: the thing to compare with.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import LayerNorm

from nti import Inversion, StableDiffusion
from nti.editing.alignment import Alignment
from nti.networks.attention import CrossAttention, SelfAttention
from nti.networks.control import AttentionControl


@dataclass
class Controller:
    """What Prompt-to-Prompt does to the maps of one batch; E edits, the source's row first."""

    alignments: Sequence[Alignment]
    alpha: Tensor
    """(T, E, 77)."""
    equalizer: Tensor
    """(E, 77)."""
    self_steps: range
    blend: Tensor | None = None
    """(1 + E, 77) of 0 and 1: the blend words of each row's prompt."""
    subtract: Tensor | None = None
    step: int = 0

    def __post_init__(self) -> None:
        self.rows = 1 + len(self.alignments)
        self.sites: list[Tensor] = []
        self.total: Tensor | float = 0.0
        self.masks: list[Tensor] = []
        """After each blended step, (1 + E, h, w)."""
        self.layers: list[Tensor] = []
        """What each attention layer gives, in the order of the calls, step after step."""

    def attend(
        self, layer: SelfAttention | CrossAttention, x: Tensor, context: Tensor, cross: bool
    ) -> Tensor:
        """Attention with its maps edited in place."""
        q = layer.split(layer.to_q(x))
        k, v = layer.split(layer.to_k(context)), layer.split(layer.to_v(context))
        maps = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1)
        source = maps[self.rows].clone()
        for i, alignment in enumerate(self.alignments):
            row = self.rows + 1 + i
            if cross:
                a = self.alpha[self.step, i]
                new = (source @ alignment.mapping + maps[row] * alignment.own) * self.equalizer[i]
                maps[row] = new * a + maps[row] * (1 - a)
            elif layer.inject and self.step in self.self_steps:
                maps[row] = source
        if cross and layer.maps_words:
            self.sites.append(maps[self.rows :].mean(dim=1))
        self.layers.append(layer.merge(maps @ v))
        return self.layers[-1]

    def mask(self, words: Tensor, size: tuple[int, int], pool: bool) -> Tensor:
        """Threshold the summed maps of the words of each row, (1 + E, h, w); union with source."""
        found = (self.total * words[:, None]).sum(dim=-1).unflatten(1, size)
        if pool:
            found = torch.nn.functional.max_pool2d(found, 3, 1, 1)
        found = found / found.amax(dim=(1, 2), keepdim=True)
        return (found > 0.3) | (found[:1] > 0.3)

    def after(self, latent: Tensor, steps: int) -> Tensor:
        """Blend the latents of a step that is done."""
        self.total = self.total + torch.stack(self.sites).mean(dim=0)
        self.sites.clear()
        if self.blend is None or self.step < int(0.2 * steps):
            return latent
        size = (latent.shape[-2], latent.shape[-1])
        mask = self.mask(self.blend, size, pool=True)
        if self.subtract is not None:
            mask = mask & ~self.mask(self.subtract, size, pool=False)
        self.masks.append(mask)
        return latent[:1] + mask[:, None] * (latent - latent[:1])


def published_edit(
    monkeypatch: pytest.MonkeyPatch,
    model: StableDiffusion,
    inversion: Inversion,
    prompts: Sequence[str],
    controller: Controller,
    start: int = 0,
) -> Tensor:
    """Return all latents (T - start + 1, 1 + E, 4, h, w), the source's first."""

    def self_forward(
        layer: SelfAttention,
        x: Tensor,
        norm: LayerNorm,
        control: AttentionControl | None,
        capture: object = None,
    ) -> Tensor:
        return controller.attend(layer, norm(x), norm(x), cross=False)

    def cross_forward(
        layer: CrossAttention,
        x: Tensor,
        norm: LayerNorm,
        context: Tensor,
        control: AttentionControl | None,
        capture: object = None,
    ) -> tuple[Tensor, None]:
        return controller.attend(layer, norm(x), context, cross=True), None

    rows = controller.rows
    schedule = model.schedule(inversion.steps)
    cond = model.encode_text([inversion.prompt, *prompts])
    latents = [inversion.latents[start].expand(rows, -1, -1, -1)]
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(SelfAttention, "forward", self_forward)
        patch.setattr(CrossAttention, "forward", cross_forward)
        for step in range(start, inversion.steps):
            controller.step = step
            context = torch.cat([inversion.uncond[step].expand(rows, -1, -1), cond])
            batch = torch.cat([latents[-1]] * 2)
            eps = model.predict_noise(batch, schedule.timesteps[step], context)
            guided = eps[:rows] + inversion.guidance_scale * (eps[rows:] - eps[:rows])
            a, b = schedule.alpha_bar[step], schedule.alpha_bar_next[step]
            clean = (latents[-1] - (1 - a).sqrt() * guided) / a.sqrt()
            arrived = b.sqrt() * clean + (1 - b).sqrt() * guided
            latents.append(controller.after(arrived, inversion.steps))
    return torch.stack(latents)
