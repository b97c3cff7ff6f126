"""MasaCtrl: the edit's self-attention looks at the source (Cao et al. 2023, arXiv 2304.08465)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nti.arguments import a_callable, a_number, a_whole_number
from nti.editing.edit_rows import EditRows
from nti.editing.proximal import Proximal
from nti.editing.result import EditedLatents, EditResult, decoded
from nti.errors import Callback
from nti.inversion.inversion import Inversion
from nti.model import StableDiffusion
from nti.networks.control import AttentionControl

__all__ = ["masactrl"]

PUBLISHED_LAYER, PUBLISHED_LAYERS = 10, 16
"""The published code shares from layer 10 of SD v1's 16 on."""


@torch.no_grad()
def masactrl(
    model: StableDiffusion,
    inversion: Inversion,
    prompts: str | Sequence[str],
    *,
    steps_from: float = 0.08,
    layers_from: int | None = None,
    guidance_scale: float | None = None,
    negative_prompt: str | None = None,
    mix: float | None = None,
    proximal: Proximal | None = None,
    callback: Callback | None = None,
) -> EditResult:
    """Sample the edited prompts with the source's self-attention keys and values.

    The edit's queries then find what looks alike in the source, wherever it is: the layout follows
    the edited prompt, and the appearance the source. So poses can change, which Prompt-to-Prompt
    keeps. Both halves of the guidance batch share: the unconditional rows look at the source's
    unconditional row (eq. 3 of the paper, as in its code). The source's latents are replayed from
    the inversion; sampling starts at its z_T.

    Args:
        model: the model that the inversion was made with.
        inversion: of the source image, by a method that has a trajectory.
        prompts: E edited prompts, or one.
        steps_from: the share of the steps before sharing begins, at step int(T steps_from): the
            fifth of 50, as published. At 1 nothing is shared.
        layers_from: the first self-attention layer that shares, counted from 0 in the order in
            which data passes the UNet; None: 10 of SD v1's 16, and the same share of a network of
            another depth.
        guidance_scale: w of the edits; None: the inversion's.
        negative_prompt: see `nti.edit_latents`.
        mix: see there.
        proximal: see there.
        callback: see `nti.errors.Callback`.

    Returns:
        The edits; `masks` is None.

    Raises:
        ValueError: settings that do not fit, or an inversion without a trajectory.
        NotFiniteError: latents that overflow.
        Stopped: by the callback.

    """
    rows = EditRows.create(
        model, inversion, prompts, guidance_scale=guidance_scale, negative_prompt=negative_prompt,
        mix=mix, proximal=proximal,
    )  # fmt: skip
    rows.check_trajectory("MasaCtrl")
    share = a_number("steps_from", steps_from, 0, 1, ", a share of the steps")
    first, layers = int(rows.schedule.steps * share), model.unet.self_attentions
    layer = layers * PUBLISHED_LAYER // PUBLISHED_LAYERS
    if layers_from is not None:
        layer = a_whole_number("layers_from", layers_from, 0, layers, ", the layers that there are")
    a_callable("callback", callback)
    own = torch.arange(2 * (1 + rows.count), device=model.device).repeat(layers, 1)
    shared = own.clone()
    shared[layer:] -= own[layer:] % (1 + rows.count)  # the first row of each half is the source's

    def noise(i: int, edits: Tensor) -> tuple[Tensor, Tensor]:
        if i < first and not model.steps.one_layout:
            return rows.noise(i, edits)
        return _controlled(rows, i, edits, own if i < first else shared)

    edits = rows.visited[0].expand(rows.count, -1, -1, -1)
    latents = rows.sample(edits, 0, "MasaCtrl", callback, noise=noise)
    return decoded(model, EditedLatents(latents, rows.visited[-1:], None))


def _controlled(rows: EditRows, i: int, edits: Tensor, value_rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the edits' unconditional and conditional noise, the source's rows beside them."""
    latent = torch.cat([rows.visited[i][None], edits]).repeat(2, 1, 1, 1)
    uncond_edits = rows.uncond_edits[i].expand(rows.count, -1, -1)
    context = torch.cat([rows.uncond_source[i], uncond_edits, rows.cond[i]])
    timestep = rows.schedule.timestep(i, latent)
    control = AttentionControl(value_rows=value_rows)
    eps, _ = rows.model.steps.controlled_noise(latent, timestep, context, control)
    eps_uncond, eps_cond = eps.chunk(2)
    return eps_uncond[1:], eps_cond[1:]
