"""One null embedding for all timesteps (null-text inversion, arXiv 2211.09794, appendix B,
Algorithm 2).
"""

from dataclasses import replace

import torch
from torch import Tensor

from nti.errors import Callback, check_finite, report
from nti.execution.steps import Steps
from nti.inversion.null_text import NullTextResult, Rule, published_learning_rate
from nti.sampling.schedule import Schedule, ddim_step
from nti.sampling.step import AdamState, IterationInputs, begin, guided_noise

__all__ = ["optimize_global_null_text"]


@torch.inference_mode(mode=False)  # the embedding learns, whatever mode the caller is in
@torch.no_grad()
def optimize_global_null_text(
    steps: Steps,
    pivot: Tensor,
    cond: Tensor,
    uncond: Tensor,
    schedule: Schedule,
    *,
    guidance_scale: float,
    sweeps: int,
    learning_rate: Rule = published_learning_rate,
    callback: Callback | None = None,
) -> NullTextResult:
    """Algorithm 2 of the null-text inversion paper, for B images at once.

    A sweep goes from z_T to z_0. At each timestep it makes one update and one guided step with the
    updated embedding. One Adam serves all sweeps.

    Args:
        steps: the model's steps.
        pivot: (T + 1, B, 4, h, w).
        cond: the prompts' token states (B, 77, C).
        uncond: where the embeddings start, psi("") (B, 77, C).
        schedule: the timesteps.
        guidance_scale: w.
        sweeps: N of them.
        learning_rate: of Adam, by timestep.
        callback: called with (sweeps done, sweeps in all); see `nti.errors.Callback`.

    Returns:
        The same embeddings T times, and the latents that they visit.

    Raises:
        NotFiniteError: latents that overflow, of all images.
        Stopped: by the callback.

    """
    uncond = uncond.clone()
    adam = AdamState.fresh(uncond)
    losses = pivot.new_full((schedule.steps, len(uncond), sweeps), torch.nan)
    for sweep in range(sweeps + 1):  # the last one learns nothing: it samples
        latents = [pivot[0]]
        for i in range(schedule.steps):
            latent, t = latents[-1], schedule.timestep(i, pivot)
            begun = begin(steps.noise, latent, t)
            eps_cond = steps.noise(begun, t, cond)
            if sweep < sweeps:
                first = IterationInputs.first(
                    uncond, latent, schedule, i, eps_cond=eps_cond, target=pivot[i + 1],
                    guidance_scale=guidance_scale, learning_rate=learning_rate(i, schedule.steps),
                    begun=begun,
                )  # fmt: skip
                made = steps.null_text_iteration(replace(first, adam=adam))
                uncond, adam, losses[i, :, sweep] = made.uncond, made.adam, made.losses
            eps = guided_noise(steps.noise(begun, t, uncond), eps_cond, guidance_scale)
            latents.append(ddim_step(latent, eps, schedule.coefficients(i)))
            where = f"sweep {sweep + 1} at timestep {schedule.timesteps[i]}"
            check_finite(latents[-1], where, steps.unet.conv_in.weight.dtype, spare_rows=True)
        report(callback, sweep + 1, sweeps + 1)
    every = uncond.expand(schedule.steps, *uncond.shape)
    return NullTextResult(every, torch.stack(latents), losses)
