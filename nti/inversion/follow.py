"""How the source's latents follow a pivot: the functions among which a method's row chooses."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nti.errors import Callback, part_of, report
from nti.execution.steps import Steps
from nti.inversion.global_null_text import optimize_global_null_text
from nti.inversion.line_search import search_null_text
from nti.inversion.methods import Method
from nti.inversion.noise_matching import match_noise, match_noise_at_each
from nti.inversion.null_text import NullTextResult, NullTextState, optimize_null_text
from nti.inversion.pull import learned_offset, pulled
from nti.inversion.sampling import sample
from nti.inversion.settings import InversionSettings
from nti.sampling.schedule import Schedule

__all__ = ["Followed", "Task", "follow"]


@dataclass(frozen=True, eq=False)
class Task:
    """What a source is to follow, and with what."""

    method: Method
    settings: InversionSettings
    steps: Steps
    schedule: Schedule
    pivot: Tensor
    """(T + 1, B, 4, h, w)."""
    cond: Tensor
    """psi(P) (B, 77, C)."""
    uncond: Tensor
    """What stands for psi("") at first (B, 77, C)."""
    guidance_scale: float
    generator: torch.Generator
    """On the CPU."""
    callback: Callback | None
    watch: Callable[[NullTextState], object] | None
    state: NullTextState | None

    @property
    def learns_prompt(self) -> bool:
        """Whether it is the prompt's embedding that learns."""
        return self.method.learns == "prompt"

    @property
    def learned(self) -> Tensor:
        """The embedding that learns, where one does."""
        return self.cond if self.learns_prompt else self.uncond

    @property
    def fixed(self) -> Tensor:
        """The other one."""
        return self.uncond if self.learns_prompt else self.cond

    @property
    def weight(self) -> float:
        """Of the fixed embedding's noise: guidance is u + w (c - u) = c + (1 - w) (u - c)."""
        return 1 - self.guidance_scale if self.learns_prompt else self.guidance_scale


@dataclass(frozen=True, eq=False)
class Followed:
    """The source's way, in sampling order."""

    uncond: Tensor
    """What stands for psi("") (T, B, 77, C)."""
    cond: Tensor | None
    """What stands for psi(P) (T, B, 77, C); None: psi(P) itself."""
    latents: Tensor
    """z_T .. z_0: (T + 1, B, 4, h, w)."""
    losses: Tensor
    """Of each iteration (T, B, N), NaN where an image had stopped."""
    offsets: Tensor | None = None
    """What is added to each step (T, B, 4, h, w); None: nothing."""


def follow(task: Task) -> Followed:
    """Find the source's latents as the method's row says.

    Raises:
        NotFiniteError: latents that overflow, of all images.
        Stopped: by the callback.

    """
    return WAYS[task.method.by](task)


def _descent(task: Task) -> Followed:
    found = optimize_null_text(
        task.steps,
        task.pivot,
        task.fixed,
        task.learned,
        task.schedule,
        guidance_scale=task.weight,
        inner_steps=task.settings.inner_steps if task.method.learns != "nothing" else 0,
        learning_rate=task.settings.learning_rate,
        threshold=task.settings.threshold,
        callback=task.callback,
        watch=task.watch,
        state=task.state,
    )
    return _in_place(task, found)


def _line_search(task: Task) -> Followed:
    found = search_null_text(
        task.steps,
        task.pivot,
        task.cond,
        task.uncond,
        task.schedule,
        guidance_scale=task.guidance_scale,
        callback=task.callback,
        watch=task.watch,
        state=task.state,
    )
    return _in_place(task, found)


def _sweeps(task: Task) -> Followed:
    found = optimize_global_null_text(
        task.steps,
        task.pivot,
        task.cond,
        task.uncond,
        task.schedule,
        guidance_scale=task.guidance_scale,
        sweeps=task.settings.inner_steps,
        learning_rate=task.settings.learning_rate,
        callback=task.callback,
    )
    return _in_place(task, found)


def _noise_at_each(task: Task) -> Followed:
    found, losses = match_noise_at_each(
        task.steps,
        task.pivot[-1],
        task.cond,
        task.uncond,
        task.schedule,
        guidance_scale=task.guidance_scale,
        inner_steps=task.settings.inner_steps,
        learning_rate=task.settings.learning_rate,
        generator=task.generator,
        callback=part_of(task.callback, 0, 2 * task.schedule.steps),
    )
    return _sampled(task, found, losses, task.schedule.steps)


def _noise_at_all(task: Task) -> Followed:
    count = task.schedule.steps
    iterations = count * task.settings.inner_steps
    drawn = torch.randint(count, (iterations,), generator=task.generator).tolist()
    found, losses = match_noise(
        task.steps,
        task.pivot[-1],
        task.fixed,
        task.learned,
        task.schedule,
        drawn,
        weight=0.0,
        learning_rate=task.settings.learning_rate(0, count),
        generator=task.generator,
        callback=part_of(task.callback, 0, iterations + count),
    )
    every = found.expand(count, *found.shape)
    # In the order of the iterations, whose timesteps were drawn.
    losses = losses.reshape(len(found), count, -1).transpose(0, 1)
    return _sampled(task, every, losses, iterations)


def _pull(task: Task) -> Followed:
    settings, kept = task.settings, bool(task.method.keeps)
    uncond = _each(task, task.uncond)
    losses = task.pivot.new_zeros((task.schedule.steps, len(task.cond), 0))
    if task.method.replayed and settings.pull_share == 1 and settings.pull_every == 1:
        report(task.callback, task.schedule.steps, task.schedule.steps)
        return Followed(uncond, None, task.pivot, losses)
    made = pulled(
        task.steps,
        task.pivot,
        task.cond,
        task.uncond,
        task.schedule,
        guidance_scale=task.guidance_scale,
        offset=lambda short, i: short * (settings.pull_share * (i % settings.pull_every == 0)),
        callback=task.callback,
    )
    return Followed(uncond, None, made.latents, losses, made.offsets if kept else None)


def _offsets(task: Task) -> Followed:
    count, settings = task.schedule.steps, task.settings
    made = pulled(
        task.steps,
        task.pivot,
        task.cond,
        task.uncond,
        task.schedule,
        guidance_scale=task.guidance_scale,
        offset=lambda short, i: learned_offset(
            short, settings.inner_steps, settings.learning_rate(i, count)
        ),
        callback=task.callback,
    )
    losses = task.pivot.new_zeros((count, len(task.cond), 0))
    return Followed(_each(task, task.uncond), None, made.latents, losses, made.offsets)


WAYS: dict[str, Callable[[Task], Followed]] = {
    "descent": _descent,
    "line-search": _line_search,
    "sweeps": _sweeps,
    "noise-each": _noise_at_each,
    "noise-all": _noise_at_all,
    "pull": _pull,
    "offsets": _offsets,
}
"""By the name that a row gives in `Method.by`."""


def _each(task: Task, embedding: Tensor) -> Tensor:
    """Return an embedding (B, 77, C) for each timestep."""
    return embedding.expand(task.schedule.steps, *embedding.shape)


def _in_place(task: Task, found: NullTextResult) -> Followed:
    """Put what was learned in the place of what it stands for."""
    if task.learns_prompt:
        return Followed(_each(task, task.uncond), found.uncond, found.latents, found.losses)
    return Followed(found.uncond, None, found.latents, found.losses)


def _sampled(task: Task, found: Tensor, losses: Tensor, before: int) -> Followed:
    """Sample with what was learned (T, B, 77, C), from the pivot's z_T; `before` steps are done."""
    uncond = _each(task, task.uncond) if task.learns_prompt else found
    cond = found if task.learns_prompt else _each(task, task.cond)
    callback = part_of(task.callback, before, before + task.schedule.steps)
    latents = sample(
        task.steps, task.pivot[0], cond, uncond, task.schedule, task.guidance_scale,
        spare_rows=True, callback=callback,
    )  # fmt: skip
    return Followed(uncond, found if task.learns_prompt else None, latents, losses)
