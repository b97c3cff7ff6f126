"""The pipelines that people use instead, on diffusers' UNet: the published null-text loop, and the
published Prompt-to-Prompt batch of four rows with every attention map in memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from nti.weights_loader import unet_layouts
from torch import Tensor

from cases import GUIDANCE
from nti.config import UNetConfig
from nti.networks.unet import UNet
from nti.sampling.schedule import StepCoefficients
from nti.sampling.step import IterationInputs

__all__ = ["PublishedBatch", "PublishedLoop", "diffusers_unet", "empty_unet"]


def empty_unet(config: UNetConfig) -> UNet2DConditionModel:
    """The UNet of diffusers in the same configuration, on the meta device."""
    attends = [i in config.attention_levels for i in range(len(config.channel_multipliers))]
    with torch.device("meta"):
        return UNet2DConditionModel(
            block_out_channels=config.level_channels,
            layers_per_block=config.res_blocks,
            down_block_types=["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
            up_block_types=["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]],
            cross_attention_dim=config.context_dim,
            attention_head_dim=config.heads,
            norm_num_groups=config.norm_groups,
        )


def diffusers_unet(unet: UNet) -> UNet2DConditionModel:
    """That UNet on our weights: the same memory, but for convolutions in another layout."""
    state, keys, config = unet.state_dict(), {}, unet.config
    _, diffusers = unet_layouts(
        config.channel_multipliers, config.res_blocks, config.attention_levels
    )
    for sources, target in diffusers.rows:
        keys[sources[0]] = state[target].contiguous()
    theirs = empty_unet(config)
    theirs.load_state_dict(keys, assign=True)
    return theirs.requires_grad_(False).eval()


def noise(
    unet: UNet2DConditionModel, latent: Tensor, timestep: int | Tensor, context: Tensor
) -> Tensor:
    """eps_theta(z_t, t, C) in the latent's dtype, computed in the network's."""
    out = unet(latent.to(unet.dtype), timestep, encoder_hidden_states=context.to(unet.dtype))
    eps: Tensor = out.sample.to(latent.dtype)
    return eps


class PublishedLoop:
    """One inner iteration of the published code, on torch's Adam; `frozen`: its one-line repair."""

    def __init__(self, unet: UNet2DConditionModel, *, frozen: bool) -> None:
        self.unet, self.frozen = unet, frozen

    def iterate(self, x: IterationInputs) -> Tensor:
        """Make one step of Adam; return its first moment, a tenth of the gradient."""
        # Shared weights: what another provider needs frozen is made trainable for this call alone.
        self.unet.requires_grad_(not self.frozen)
        uncond = x.uncond.clone().requires_grad_()
        adam = torch.optim.Adam([uncond], lr=1e-2)
        eps_uncond = noise(self.unet, x.latent, x.timestep, uncond)
        eps = eps_uncond + GUIDANCE * (x.eps_cond - eps_uncond)
        step = x.coefficients
        loss = F.mse_loss(step.latent * x.latent + step.eps * eps, x.target)
        adam.zero_grad()
        loss.backward()
        adam.step()
        loss.item()
        self.unet.requires_grad_(False)
        moment: Tensor = adam.state[uncond]["exp_avg"]
        return moment


class PublishedBatch:
    """Prompt-to-Prompt's step on [u_source, u_edit, c_source, c_edit], maps materialised.

    Attributes:
        mix: A (77, 77) of the step, or None when the cross window has closed.
        inject: whether the source's self-attention is injected.

    """

    def __init__(self, unet: UNet2DConditionModel, finest: int) -> None:
        """`finest`: the most positions at which self-attention is injected."""
        self.unet, self.finest = unet, finest
        self.mix: Tensor | None = None
        self.inject = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Replace the processors, as the published code replaces the forward functions."""
        before = self.unet.attn_processors
        self.unet.set_attn_processor(self)  # type: ignore[arg-type]
        yield
        self.unet.set_attn_processor(before)

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        *_: object, **__: object,
    ) -> Tensor:  # fmt: skip
        """Compute one attention layer with its map in memory."""
        crosses = encoder_hidden_states is not None
        context = encoder_hidden_states if crosses else hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        q, k, v = (attn.head_to_batch_dim(x) for x in (q, k, v))
        maps = attn.get_attention_scores(q, k)
        source, edit = maps.chunk(4)[2:]
        if crosses and self.mix is not None:
            edit.copy_(source @ self.mix)
        elif not crosses and self.inject and maps.shape[1] <= self.finest:
            edit.copy_(source)
        out: Tensor = attn.to_out[0](attn.batch_to_head_dim(torch.bmm(maps, v)))
        return out

    @torch.no_grad()
    def step(
        self, latents: Tensor, timestep: int, context: Tensor, step: StepCoefficients, w: float
    ) -> Tensor:
        """Return the next latents of source and edit (2, 4, h, w); context (4, 77, C)."""
        eps = noise(self.unet, torch.cat([latents] * 2), timestep, context)
        eps_uncond, eps_cond = eps.chunk(2)
        eps = eps_uncond + w * (eps_cond - eps_uncond)
        return step.latent.to(latents) * latents + step.eps.to(latents) * eps
