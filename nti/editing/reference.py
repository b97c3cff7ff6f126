"""Prompt-to-Prompt as it was published, with every attention map in memory (arXiv 2208.01626).

This is where to begin reading. A batch of 2 + 2E rows, [unconditional, conditional] of source and
edits, goes through the UNet, and the conditional half of every map is edited. The working path
(`nti.editing.prompt_to_prompt`) gives the same numbers and has no map in memory: it folds what
`MapEdit` does to the maps into the values (`nti.kernels.cfg_attention`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from nti.config import UNetConfig
from nti.editing.alignment import Alignment
from nti.editing.local_blend import START, THRESHOLD
from nti.inversion.inversion import Inversion
from nti.model import StableDiffusion
from nti.networks.control import Site
from nti.sampling.schedule import ddim_step
from nti.sampling.step import controlled_noise, guided_noise

__all__ = ["MapEdit", "edit_reference"]


@dataclass(eq=False)
class MapEdit:
    """What Prompt-to-Prompt does to the maps of one batch; E edits, the source's row first.

    A hook of the attention layers: see `nti.networks.control.MapHook`.
    """

    config: UNetConfig
    alignments: Sequence[Alignment]
    """E of them."""
    alpha: Tensor
    """a_t, the cross-attention's windows by word: (T, E, 77) of 0 and 1."""
    equalizer: Tensor
    """c, the words' factors: (E, 77)."""
    self_steps: range
    """The steps in which self-attention is injected."""
    blend: Tensor | None = None
    """The blend words of each row's prompt: (1 + E, 77) of 0 and 1."""
    subtract: Tensor | None = None
    """Likewise the words whose regions stay."""
    blend_start: float = START
    threshold: float = THRESHOLD

    step: int = 0
    """Which step is going on."""
    word_maps: list[Tensor] = field(default_factory=list)
    """Of this step, from each site that local blend reads: (1 + E, L, 77)."""
    total: Tensor | float = 0.0
    """Their sum over the steps so far: (1 + E, L, 77)."""
    masks: list[Tensor] = field(default_factory=list)
    """After each blended step, (1 + E, h, w) bool."""

    @property
    def rows(self) -> int:
        """1 + E, half of the batch."""
        return 1 + len(self.alignments)

    @property
    def _blends(self) -> bool:
        return self.blend is not None or self.subtract is not None

    def wants(self, site: Site) -> bool:
        """Every map."""
        return True

    def __call__(self, site: Site, maps: Tensor) -> Tensor:
        """Edit the conditional half of a map (2 + 2E, heads, L, S)."""
        maps = maps.clone()
        source = maps[self.rows]
        for i, alignment in enumerate(self.alignments):
            row = self.rows + 1 + i
            if site.kind == "cross":
                mapping, own = alignment.mapping.to(maps), alignment.own.to(maps)
                a, c = self.alpha[self.step, i].to(maps), self.equalizer[i].to(maps)
                maps[row] = (source @ mapping + maps[row] * own) * c * a + maps[row] * (1 - a)
            elif site.level >= self.config.self_injection_level and self.step in self.self_steps:
                maps[row] = source
        level = self.config.word_map_level
        read = site.kind == "cross" and site.place != "middle" and site.level == level
        if self._blends and read:
            self.word_maps.append(maps[self.rows :].mean(dim=1))
        return maps

    def after_step(self, latent: Tensor) -> Tensor:
        """Blend the latents (1 + E, 4, h, w) of a step that is done."""
        if not self._blends:
            return latent
        self.total = self.total + torch.stack(self.word_maps).mean(dim=0)
        self.word_maps.clear()
        if self.step < int(self.blend_start * len(self.alpha)):
            return latent
        height, width = latent.shape[-2:]
        mask = torch.ones_like(latent[:, 0], dtype=torch.bool)
        if self.blend is not None:
            mask = self._mask(self.blend, (height, width), pool=True)
        if self.subtract is not None:
            mask = mask & ~self._mask(self.subtract, (height, width), pool=False)
        self.masks.append(mask)
        return latent[:1] + mask[:, None] * (latent - latent[:1])

    def _mask(self, words: Tensor, size: tuple[int, int], *, pool: bool) -> Tensor:
        """Threshold the summed maps of each row's words: (1 + E, h, w); union with the source's."""
        assert isinstance(self.total, Tensor)
        found = (self.total * words[:, None].to(self.total)).sum(dim=-1)
        shrink = (size[0] * size[1] // found.shape[1]) ** 0.5
        sides = round(size[0] / shrink), round(size[1] / shrink)
        found = found.view(-1, 1, *sides)
        if pool:
            found = F.max_pool2d(found, 3, 1, 1)
        found = F.interpolate(found, size=size)[:, 0]
        found = found / found.amax(dim=(1, 2), keepdim=True)
        return (found > self.threshold) | (found[:1] > self.threshold)


@torch.no_grad()
def edit_reference(
    model: StableDiffusion,
    inversion: Inversion,
    prompts: Sequence[str],
    edit: MapEdit,
    *,
    start: int = 0,
) -> Tensor:
    """Sample source and edits together, and edit every map on the way.

    Args:
        model: the model that the inversion was made with.
        inversion: of the source image.
        prompts: E edited prompts.
        edit: what happens to the maps; used up by one call.
        start: the step to start at.

    Returns:
        All latents (T - start + 1, 1 + E, 4, h, w), the source's first.

    """
    rows, schedule = edit.rows, model.schedule(inversion.steps)
    cond = model.encode_text([inversion.prompt, *prompts])
    visited = inversion.latents.to(model.device, model.state_dtype)
    uncond = inversion.uncond.to(model.device, model.state_dtype)
    latents = [visited[start].expand(rows, -1, -1, -1)]
    for i in range(start, schedule.steps):
        edit.step = i
        batch = torch.cat([latents[-1], latents[-1]])
        context = torch.cat([uncond[i].expand(rows, -1, -1), cond])
        t = schedule.timestep(i, batch)
        eps, _ = controlled_noise(model.unet, batch, t, context, None, edit)
        guided = guided_noise(eps[:rows], eps[rows:], inversion.guidance_scale)
        latents.append(edit.after_step(ddim_step(latents[-1], guided, schedule.coefficients(i))))
    return torch.stack(latents)
