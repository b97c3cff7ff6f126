"""The state of an inversion that is under way, and the file in which it outlives its process."""

import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nti.files import locked
from nti.inversion.null_text import NullTextState, Timestep
from nti.inversion.tensor_file import read_tensors, write_tensors
from nti.sampling.step import AdamState
from nti.weights_loader.metadata import printable

__all__ = ["InversionState", "StateFile", "StateFileError", "Watch"]

FORMAT = "nti-state-1"
KEY = "state"

MARKED = 2**16
"""Bytes at a state's beginning, in which its format is named."""

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

    def __init__(self, path: str | Path, *, every: float = 2.0, restart: bool = False) -> None:
        """Write at most every so many seconds, and so seldom that it takes 1 % of the time.

        `restart` begins anew and writes over the state that is there.
        """
        self.path = Path(path)
        self._every, self._restart = every, restart
        self._request: dict[str, Any] = {}
        self._latest: InversionState | None = None
        self._due = time.monotonic() + every
        self._warned = False

    @contextmanager
    def running(self, request: Mapping[str, Any]) -> Iterator[InversionState | None]:
        """Hold the file for one run: give the state to go on from, and write the last one.

        The last state is written where the run ends by an exception. A ValueError is none of those,
        as the same run would end by it again.

        Args:
            request: what JSON can hold and all that an inversion's result depends on, by name.

        Raises:
            StateFileError: a damaged file, one of another request, or one that another run is
                writing; the file is left.

        """
        self._request = json.loads(json.dumps(request))
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self.path.with_name(f"{self.path.name}.lock")))
            except BlockingIOError:
                raise StateFileError(
                    f"{self.path}: another run is writing this state: wait for it, or give another"
                    " output"
                ) from None
            except OSError:  # `flush` will say that nothing can be written there
                pass
            start = self._read()
            try:
                yield start
            except ValueError:
                raise
            except BaseException:  # an interruption, too
                self.flush()
                raise

    def _read(self) -> InversionState | None:
        if not self.path.exists():
            return None
        if not self.path.is_file():
            raise StateFileError(f"{self.path}: got no file, expected the state of an inversion")
        advice = f"to begin anew, remove {self.path}, or give --restart"
        if self._restart:
            with self.path.open("rb") as file:
                if FORMAT.encode() in file.read(MARKED):
                    return None
            raise StateFileError(f"{self.path}: is no state of an inversion: move it away")
        try:
            found = read_tensors(self.path, KEY)
            if found.header.get("format") != FORMAT or not found.verified:
                raise ValueError(f"not the state of an inversion, of format {FORMAT!r}")
            if difference := _difference(found.header["request"], self._request):
                raise StateFileError(
                    f"{self.path}: got the state of another run ({difference}): repeat that run to"
                    f" go on with it; {advice}"
                )
            _check(found.header, found.tensors)
            return _unpacked(found.header, found.tensors)
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
    if found.length is not None:
        tensors["timestep.length"] = found.length
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


RANKS = {
    "pivot": 5, "latents": 5, "uncond": 4, "losses": 3, "timestep.uncond": 3, "timestep.mean": 3,
    "timestep.square": 3, "timestep.count": 1, "timestep.active": 1, "timestep.losses": 2,
    "timestep.length": 1,
}  # fmt: skip
"""The dimensions of each tensor."""


def _check(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError for tensors that are no state together."""
    dtype, shape = tensors["pivot"].dtype, tensors["pivot"].shape
    for name, values in tensors.items():
        right = torch.bool if name == "timestep.active" else dtype
        if values.ndim != RANKS.get(name) or values.dtype != right or 0 in values.shape[:-1]:
            raise ValueError(f"{name}: got {tuple(values.shape)} of {values.dtype}")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"pivot: got {dtype}, expected float32 or float64")
    if header["stage"] == "pivot":
        return
    done = len(tensors.get("uncond", ()))
    if tensors["latents"].shape != (done + 1, *shape[1:]) or len(tensors.get("losses", ())) != done:
        raise ValueError(f"got {done} embeddings, and latents or losses that do not belong to them")
    batch = {
        len(values) if name.startswith("timestep.") else values.shape[1]
        for name, values in tensors.items()
    }
    most = tensors["timestep.losses"].shape[1] if header["iterations"] is not None else 0
    if len(batch) != 1 or not 0 <= (header["iterations"] or 0) <= most:
        raise ValueError(f"got batches of {sorted(batch)} in iteration {header['iterations']}")


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
    latents, length = tuple(tensors["latents"]), tensors.get("timestep.length")
    return InversionState(pivot, NullTextState(done[0], latents, done[1], at, length))


def _difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Say in what two requests differ; empty where they do not."""
    names = [name for name, value in ours.items() if theirs.get(name) != value]
    if "steps" in names:  # the tables follow from it
        names = [name for name in names if name not in ("learning_rate", "threshold")]
    if not names:
        return ""
    told, own = (", ".join(f"{n} {_short(x.get(n))}" for n in names) for x in (theirs, ours))
    return f"{told}), expected this one's ({own}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
