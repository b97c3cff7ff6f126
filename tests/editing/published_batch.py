"""The published edit, written from the paper's equations with every attention map in memory.

A batch of 2 + 2E rows, [unconditional, conditional] of source and edits, whose conditional half is
edited map by map. Slow and plain: the thing to compare with.
"""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from nti import Inversion, StableDiffusion
from nti.editing.alignment import Alignment
from nti.networks.attention import CrossAttention, SelfAttention
from nti.networks.control import AttentionControl


def published_edit(
    monkeypatch: pytest.MonkeyPatch,
    model: StableDiffusion,
    inversion: Inversion,
    prompts: Sequence[str],
    alignments: Sequence[Alignment],
    alpha: Tensor,
    equalizer: Tensor,
    self_steps: range,
) -> Tensor:
    """Return all latents (T + 1, 1 + E, 4, h, w), the source's first.

    alpha (T, E, 77) and equalizer (E, 77) are Prompt-to-Prompt's.
    """
    rows = 1 + len(prompts)
    step = 0

    def attend(
        layer: SelfAttention | CrossAttention, x: Tensor, context: Tensor, cross: bool
    ) -> Tensor:
        q = layer.split(layer.to_q(x))
        k, v = layer.split(layer.to_k(context)), layer.split(layer.to_v(context))
        maps = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1)
        source = maps[rows].clone()
        for i, alignment in enumerate(alignments):
            row = rows + 1 + i
            if cross:
                new = source @ alignment.mapping + maps[row] * alignment.own
                new = new * equalizer[i]
                maps[row] = new * alpha[step, i] + maps[row] * (1 - alpha[step, i])
            elif layer.inject and step in self_steps:
                maps[row] = source
        return layer.merge(maps @ v)

    def self_forward(
        layer: SelfAttention, x: Tensor, control: AttentionControl | None, capture: object = None
    ) -> Tensor:
        return attend(layer, x, x, cross=False)

    def cross_forward(
        layer: CrossAttention,
        x: Tensor,
        context: Tensor,
        control: AttentionControl | None,
        capture: object = None,
    ) -> tuple[Tensor, None]:
        return attend(layer, x, context, cross=True), None

    schedule = model.schedule(inversion.steps)
    cond = model.encode_text([inversion.prompt, *prompts])
    latents = [inversion.latents[0].expand(rows, -1, -1, -1)]
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(SelfAttention, "forward", self_forward)
        patch.setattr(CrossAttention, "forward", cross_forward)
        for step, timestep in enumerate(schedule.timesteps):  # noqa: B007  # read by `attend`
            context = torch.cat([inversion.uncond[step].expand(rows, -1, -1), cond])
            eps = model.predict_noise(torch.cat([latents[-1]] * 2), timestep, context)
            guided = eps[:rows] + inversion.guidance_scale * (eps[rows:] - eps[:rows])
            a, b = schedule.alpha_bar[step], schedule.alpha_bar_next[step]
            clean = (latents[-1] - (1 - a).sqrt() * guided) / a.sqrt()
            latents.append(b.sqrt() * clean + (1 - b).sqrt() * guided)
    return torch.stack(latents)
