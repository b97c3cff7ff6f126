"""The state of an inversion that is under way, and the file in which it outlives its process."""

import json
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nti.inversion.null_text import NullTextState, Timestep
from nti.inversion.tensor_file import read_tensors, write_tensors
from nti.sampling.step import AdamState
from nti.weights_loader.metadata import printable

__all__ = ["InversionState", "StateFile", "StateFileError", "Watch"]

FORMAT = "nti-state-1"
KEY = "state"

SHARE = 0.01
"""Of a run's time that keeping its state may take."""


class StateFileError(ValueError):
    """A state that cannot be gone on from: damaged, or of another run."""


@dataclass(frozen=True, eq=False)
class InversionState:
    """How far an inversion of B images is: all that the rest of it depends on."""

    pivot: tuple[Tensor, ...]
    """z*_0 and what DDIM inversion has made of it so far, each (B, 4, h, w)."""
    null_text: NullTextState | None = None
    """None before the optimization."""

    def to(self, device: torch.device) -> "InversionState":
        """Return the state elsewhere."""
        header, tensors = _packed(self)
        return _unpacked(header, {name: values.to(device) for name, values in tensors.items()})


Watch = Callable[[InversionState], object]
"""Told how far an inversion is after every step and every inner iteration."""


class StateFile:
    """Keeps an inversion's state in a file, and gives it to a later run of the same inversion.

    `nti.invert(..., state=StateFile("x.state"))` writes the file now and then, and whenever the run
    ends by an exception. Called again, it goes on from there. The file is for the caller to
    `remove`, once the inversion itself is saved.
    """

    def __init__(self, path: str | Path, *, every: float = 2.0) -> None:
        """Write at most every so many seconds, and so seldom that it takes 1 % of the time."""
        self.path = Path(path)
        self._every = every
        self._request: dict[str, Any] = {}
        self._latest: InversionState | None = None
        self._due = time.monotonic() + every
        self._warned = False

    def begin(self, request: Mapping[str, Any]) -> InversionState | None:
        """Return the state to go on from, None where there is no file.

        Args:
            request: what JSON can hold and all that an inversion's result depends on, by name.

        Raises:
            StateFileError: a damaged file, or one of another request; the file is left.

        """
        self._request = json.loads(json.dumps(request))
        if not self.path.exists():
            return None
        advice = f"remove {self.path}, or give --restart, to begin anew"
        try:
            found = read_tensors(self.path, KEY)
            if found.header.get("format") != FORMAT or not found.verified:
                raise ValueError(f"not the state of an inversion, of format {FORMAT!r}")
            header, tensors = found.header, found.tensors
            other = header["request"]
            names = [n for n, value in self._request.items() if other.get(n) != value]
            if names:
                told = ", ".join(f"{n} {_short(other.get(n))}" for n in names)
                ours = ", ".join(f"{n} {_short(self._request[n])}" for n in names)
                raise StateFileError(
                    f"{self.path}: got the state of another run ({told}), expected this one's"
                    f" ({ours}): repeat that run to go on with it; {advice}"
                )
            return _unpacked(header, tensors)
        except StateFileError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StateFileError(
                f"{self.path}: cannot be gone on from ({printable(str(error))}); {advice}"
            ) from error

    def keep(self, state: InversionState) -> None:
        """Remember a state, and write it where it is time to."""
        self._latest = state
        if time.monotonic() >= self._due:
            started = time.monotonic()
            self.flush()
            ended = time.monotonic()
            self._due = ended + max(self._every, (ended - started) / SHARE)

    def flush(self) -> bool:
        """Write the latest state. Where that is impossible the run goes on: it warns, once."""
        if self._latest is None:
            return False
        header, tensors = _packed(self._latest)
        header |= {"format": FORMAT, "request": self._request}
        try:
            write_tensors(self.path, KEY, header, tensors)
        except OSError as error:
            if not self._warned:
                warnings.warn(f"the run's state cannot be kept: {error}", stacklevel=2)
            self._warned = True
            return False
        return True

    def remove(self) -> None:
        """Remove the file, where there is one."""
        self.path.unlink(missing_ok=True)


def _packed(state: InversionState) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors = {"pivot": torch.stack(state.pivot)}
    found = state.null_text
    if found is None:
        return {"stage": "pivot", "iterations": None}, tensors
    tensors["latents"] = torch.stack(found.latents)
    if found.uncond:
        tensors |= {"uncond": torch.stack(found.uncond), "losses": torch.stack(found.losses)}
    at = found.timestep
    if at is None:
        return {"stage": "null-text", "iterations": None}, tensors
    tensors |= {
        "timestep.uncond": at.uncond,
        "timestep.mean": at.adam.mean,
        "timestep.square": at.adam.square,
        "timestep.count": at.adam.count,
        "timestep.active": at.active,
        "timestep.losses": at.losses,
    }
    return {"stage": "null-text", "iterations": at.iterations}, tensors


def _unpacked(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> InversionState:
    # Copies: a tensor inside a file's map begins anywhere, and products round by where it begins.
    tensors = {name: values.clone() for name, values in tensors.items()}
    pivot = tuple(tensors["pivot"])
    if header["stage"] == "pivot":
        return InversionState(pivot)
    at = None
    if header["iterations"] is not None:
        uncond, mean, square, count, active, losses = (
            tensors[f"timestep.{name}"]
            for name in ("uncond", "mean", "square", "count", "active", "losses")
        )
        adam = AdamState(mean, square, count)
        at = Timestep(uncond, adam, active, losses, int(header["iterations"]))
    done = tuple(tensors.get("uncond", ())), tuple(tensors.get("losses", ()))
    return InversionState(pivot, NullTextState(done[0], tuple(tensors["latents"]), done[1], at))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
