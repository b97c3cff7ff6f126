"""How far a command is: a bar for people, a line now and then for a log, events for programs."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nti.cli.terminal import Terminal

if TYPE_CHECKING:
    from torch import Tensor

    from nti.inversion.settings import InversionSettings
    from nti.inversion.state import InversionState
    from nti.sampling.schedule import Schedule

__all__ = ["InversionProgress", "Progress", "progress"]

BAR, EVENT, LINE = 0.1, 0.5, 15.0
"""Seconds between two looks of the bar, two events, two lines."""

LONG = 60.0
"""Seconds from which on a run's length is announced."""

PASSES = 3.0
"""Forward passes that an inner iteration takes about as long as, until one was measured."""


class Progress:
    """Shows steps done of steps in all, with facts beside them."""

    def __init__(self, terminal: Terminal, label: str) -> None:
        self.terminal, self.label = terminal, label
        self._bar: Any = None
        self._every = LINE
        if terminal.as_json:
            self._every = EVENT
        elif not terminal.quiet and terminal.err.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                desc=label, file=terminal.err, mininterval=0,
                bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
            )  # fmt: skip
            self._every = BAR
        self._next = time.monotonic() + (self._every if self._bar is None else 0.0)

    def __call__(self, done: int, total: int) -> None:
        """Show a step; what the library's callbacks are told."""
        self.show(done, total, dict)

    def show(self, done: int, total: int, facts: Callable[[], dict[str, float]]) -> None:
        """Show a step if it is time to, with facts that are computed only then."""
        self.terminal.go_on()
        now = time.monotonic()
        if now < self._next and not (done == total and self._every != LINE):
            return
        self._next = now + self._every
        if self.terminal.as_json:
            self.terminal.event("progress", stage=self.label, done=done, total=total, **facts())
        elif self._bar is not None:
            self._bar.total, self._bar.n = total, done
            self._bar.set_postfix_str(_in_words(facts()))
        elif not self.terminal.quiet:
            words = _in_words(facts())
            line = f"{self.label}: {done} of {total}{', ' if words else ''}{words}"
            self.terminal.err.write(line + "\n")

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()


@contextmanager
def progress(terminal: Terminal, label: str) -> Iterator[Progress]:
    """Show how far something is, until it ends."""
    shown = Progress(terminal, label)
    try:
        yield shown
    finally:
        shown.close()


class InversionProgress:
    """Watches an inversion: timestep, iteration, loss, how near the pivot it is, and time left."""

    def __init__(
        self, shown: Progress, schedule: "Schedule", settings: "InversionSettings"
    ) -> None:
        self._shown, self._schedule = shown, schedule
        row = settings.row
        self._inner = settings.inner_steps if row.optimizes and row.by == "descent" else 0
        self._announced = False
        self._last: tuple[int, float] | None = None
        self._rates: dict[str, list[float]] = {"pass": [], "iteration": []}

    def __call__(self, state: "InversionState") -> None:
        """Show a state."""
        steps, inner = self._schedule.steps, self._inner
        found = state.null_text
        done = len(state.pivot) - 1
        if found is not None:
            at = 0 if found.timestep is None else found.timestep.iterations
            done += len(found.uncond) * max(inner, 1) + at
        now = time.monotonic()
        if self._last is not None and done == self._last[0] + 1:
            kind = "pass" if found is None else "iteration"
            self._rates[kind].append(now - self._last[1])
        self._last = done, now
        self._announce(done)
        total = steps + steps * max(inner, 1)
        self._shown.show(done, total, lambda: self._facts(state, done))

    def _announce(self, done: int) -> None:
        """Say how long a long run will take, once two iterations were measured."""
        measured = self._rates["iteration"] if self._inner else self._rates["pass"]
        if self._announced or len(measured) < 2:
            return
        self._announced = True
        left = self._seconds_left(done)
        if left >= LONG:
            self._shown.terminal.note(f"this will take {_duration(left)} at most", seconds=left)

    def _seconds_left(self, done: int) -> float:
        """The most that is left: an early stop makes it less."""
        steps, a_pass = self._schedule.steps, _median(self._rates["pass"])
        # A timestep without iterations is two passes.
        usual = PASSES if self._inner else 2
        an_iteration = _median(self._rates["iteration"]) or usual * a_pass
        passes = max(0, steps - done)
        rest = steps + steps * max(self._inner, 1) - done - passes
        return passes * a_pass + rest * an_iteration

    def _facts(self, state: "InversionState", done: int) -> dict[str, float]:
        found, left = state.null_text, self._seconds_left(done)
        if found is None:
            timestep = self._schedule.timesteps[-(len(state.pivot) - 1)]
            return {"timestep": timestep, "seconds_left": left}
        index = len(found.uncond)
        at = found.timestep
        timestep = self._schedule.timesteps[index if at is not None else index - 1]
        facts: dict[str, float] = {"timestep": timestep}
        if at is not None:
            facts |= {"iteration": at.iterations, "loss": float(at.losses[0, at.iterations - 1])}
        # The pivot is kept from z_0 on, what sampling visits from z_T on.
        target = state.pivot[len(state.pivot) - len(found.latents)]
        facts["psnr"] = _psnr(found.latents[-1], target)
        return {**facts, "seconds_left": left}


def _psnr(latent: "Tensor", target: "Tensor") -> float:
    """In dB, of latents, with the target's range as the peak; 99 where they are alike."""
    peak = float(target.max() - target.min())
    error = float((latent - target).double().square().mean())
    return 99.0 if error <= peak * peak * 10**-9.9 else 10 * math.log10(peak * peak / error)


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2] if values else 0.0


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"


def _in_words(facts: dict[str, float]) -> str:
    words = {
        "timestep": lambda v: f"timestep {v:g}",
        "iteration": lambda v: f"iteration {v:g}",
        "loss": lambda v: f"loss {v:.1e}",
        "psnr": lambda v: f"latent {v:.1f} dB from the pivot",
        "failed": lambda v: f"{v:g} failed",
        "per_minute": lambda v: f"{v:.3g} per minute",
        "seconds_left": lambda v: f"at most {_duration(v)} left",
    }
    return ", ".join(words[name](value) for name, value in facts.items())
