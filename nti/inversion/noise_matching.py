"""Embeddings that learn without a pivot: so that the network predicts noise that was just drawn.

Textual inversion (Gal et al. 2022, arXiv 2208.01618, eq. 2) learns the prompt's embedding so, and
the null-text paper's ablation the null embeddings (arXiv 2211.09794, section 4).
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from nti.errors import Callback, check_finite, report
from nti.execution.steps import Steps
from nti.inversion.noised import draw
from nti.inversion.null_text import Rule
from nti.sampling.schedule import Schedule, StepCoefficients, noised
from nti.sampling.step import AdamState, IterationInputs, begin

__all__ = ["match_noise", "match_noise_at_each"]


@torch.inference_mode(mode=False)  # the embedding learns, whatever mode the caller is in
@torch.no_grad()
def match_noise(
    steps: Steps,
    latent: Tensor,
    fixed: Tensor,
    learned: Tensor,
    schedule: Schedule,
    timesteps: Sequence[int],
    *,
    weight: float,
    learning_rate: float,
    generator: torch.Generator,
    callback: Callback | None = None,
) -> tuple[Tensor, Tensor]:
    """Minimise E ||eps - eps_theta(z_t)||^2 over an embedding, with a fresh eps each iteration.

    eps_theta is guided: weight * that of the fixed embedding + (1 - weight) * the learned one's. So
    w for a learned null embedding, and 0 for a prompt's without guidance.

    Args:
        steps: the model's steps.
        latent: z_0 (B, 4, h, w).
        fixed: the embedding that stays (B, 77, C).
        learned: where the other one starts (B, 77, C).
        schedule: the timesteps.
        timesteps: the index in the schedule of each iteration.
        weight: see above.
        learning_rate: of one Adam for all iterations.
        generator: of the noise, on the CPU.
        callback: called with (iterations done, in all); see `nti.errors.Callback`.

    Returns:
        The embeddings (B, 77, C), and the losses (B, iterations).

    Raises:
        NotFiniteError: embeddings that overflow, of all images.
        Stopped: by the callback.

    """
    learned = learned.clone()
    adam, losses = AdamState.fresh(learned), []
    zero, one = (schedule.alpha_bar.new_full((), value) for value in (0.0, 1.0))
    for i in timesteps:
        eps = draw(generator, 1, latent)[0].expand_as(latent).contiguous()
        at = noised(latent, eps, schedule.alpha_bar[i])
        t = schedule.timestep(i, latent)
        begun = begin(steps.noise, at, t)
        eps_fixed = steps.noise(begun, t, fixed) if weight else torch.zeros_like(at)
        x = IterationInputs.first(
            learned, at, schedule, i, eps_cond=eps_fixed, target=eps, guidance_scale=weight,
            learning_rate=learning_rate, begun=begun,
        )  # fmt: skip
        # A step that only gives the noise compares it with its target.
        made = steps.null_text_iteration(
            replace(x, adam=adam, coefficients=StepCoefficients(zero, one).to(latent))
        )
        learned, adam = made.uncond, made.adam
        losses.append(made.losses)
        where = f"noise matching at timestep {schedule.timesteps[i]}"
        check_finite(learned, where, steps.unet.conv_in.weight.dtype, spare_rows=True)
        report(callback, len(losses), len(timesteps))
    return learned, torch.stack(losses, dim=1)


def match_noise_at_each(
    steps: Steps,
    latent: Tensor,
    cond: Tensor,
    uncond: Tensor,
    schedule: Schedule,
    *,
    guidance_scale: float,
    inner_steps: int,
    learning_rate: Rule,
    generator: torch.Generator,
    callback: Callback | None = None,
) -> tuple[Tensor, Tensor]:
    """Do so for the null embedding of each timestep, N iterations from the one before.

    Args:
        steps: the model's steps.
        latent: z_0 (B, 4, h, w).
        cond: the prompts' token states (B, 77, C).
        uncond: where the first one starts, psi("") (B, 77, C).
        schedule: T timesteps.
        guidance_scale: w.
        inner_steps: N.
        learning_rate: of a fresh Adam for each timestep.
        generator: of the noise, on the CPU.
        callback: called with (timesteps done, T); see `nti.errors.Callback`.

    Returns:
        The embeddings (T, B, 77, C), and the losses (T, B, N).

    Raises:
        NotFiniteError: embeddings that overflow, of all images.
        Stopped: by the callback.

    """
    found: list[tuple[Tensor, Tensor]] = []
    for i in range(schedule.steps):
        start = found[-1][0] if found else uncond
        found.append(
            match_noise(
                steps, latent, cond, start, schedule, [i] * inner_steps,
                weight=guidance_scale, learning_rate=learning_rate(i, schedule.steps),
                generator=generator,
            )
        )  # fmt: skip
        report(callback, i + 1, schedule.steps)
    embeddings, losses = zip(*found, strict=True)
    return torch.stack(embeddings), torch.stack(losses)
