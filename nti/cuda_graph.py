"""A pure function of tensors as a CUDA graph: no launch overhead, and nothing to compile."""

import warnings
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cache
from threading import Lock
from typing import Any

import torch
from torch import Tensor

__all__ = ["CudaGraph", "record"]

WARMUP = 1
"""Calls before the recording, in which kernels are compiled and libraries choose theirs."""

ONE_AT_A_TIME = Lock()
"""PyTorch records one graph at a time in a process."""

Function = Callable[..., Any]
Recorder = Callable[[Function, tuple[Any, ...]], tuple[Callable[[], object], Any]]
Recording = tuple[list[Tensor | None], Callable[[], object], Any]
"""Where it reads its arguments, what replays it, and where its results are."""


def record(function: Function, arguments: tuple[Any, ...]) -> tuple[Callable[[], object], Any]:
    """Record one call on these very tensors; return what replays it, and the results it fills.

    Other threads may go on meanwhile, but not wait for the whole device nor draw random numbers
    there. Raises RuntimeError for a function that cannot be recorded.
    """
    here = torch.cuda.current_stream()
    stream = _side_stream(here.device)
    graph = torch.cuda.CUDAGraph()
    # On a stream of this device: left to itself PyTorch records on one for all devices.
    with ONE_AT_A_TIME, torch.cuda.stream(stream):
        stream.wait_stream(here)
        for _ in range(WARMUP):
            function(*arguments)
        # A graph uses its own memory for products, which nobody else does or can give back.
        torch._C._cuda_clearCublasWorkspaces()
        try:
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                results = function(*arguments)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RuntimeError(
                "CUDA graph: got an error while recording a step, which expects that it stays on"
                " the device: leave it eager (cuda_graph=False, --no-cuda-graph); what went wrong"
                f" first: {error.__context__ or error}"
            ) from error
        finally:
            torch._C._cuda_clearCublasWorkspaces()
    here.wait_stream(stream)
    return graph.replay, results


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Return one stream a device: libraries keep memory for each that they have seen."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class CudaGraph:
    """A function that is recorded at its first call with arguments of a shape, then replayed.

    Arguments and results are tensors, None, tuples and dataclasses of them. The results are
    overwritten by the next call: copy what has to stay.

    Where the memory does not suffice to record, that is an error, or, if the graph is not
    `required`, a warning, and the function is called as it is.
    """

    def __init__(
        self, function: Function, recorder: Recorder = record, *, required: bool = True
    ) -> None:
        self.function, self.recorder, self.required = function, recorder, required
        self.recorded: dict[object, Recording | None] = {}

    def __call__(self, *arguments: Any) -> Any:
        """Copy the arguments to where the recording reads them, and replay it."""
        given = _tensors(arguments)
        here = next(x for x in given if x is not None)
        with torch.cuda.device_of(here):  # type: ignore[no-untyped-call]
            return self._replay(arguments, given)

    def _replay(self, arguments: tuple[Any, ...], given: list[Tensor | None]) -> Any:
        key = tuple(None if x is None else (x.shape, x.stride(), x.dtype) for x in given)
        if key not in self.recorded:
            self.recorded[key] = self._recording(_copied(arguments))
        recording = self.recorded[key]
        if recording is None:
            return self.function(*arguments)
        places, replay, results = recording
        for place, value in zip(places, given, strict=True):
            if place is not None and value is not None:
                place.copy_(value)
        replay()
        return results

    def _recording(self, kept: tuple[Any, ...]) -> "Recording | None":
        try:
            return _tensors(kept), *self.recorder(self.function, kept)
        except torch.OutOfMemoryError as error:
            if self.required:
                raise
            warnings.warn(
                f"CUDA graph: no memory to record this step ({error}); it runs without, launch by"
                " launch, and slower",
                stacklevel=2,
            )
            return None


def _tensors(value: Any) -> list[Tensor | None]:
    """Return the leaves of a nest of tuples and dataclasses, in order."""
    if value is None or isinstance(value, Tensor):
        return [value]
    return [leaf for part in _parts(value) for leaf in _tensors(part)]


def _copied(value: Any) -> Any:
    """Return the same nest on other memory."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        return value.clone()
    parts = [_copied(part) for part in _parts(value)]
    return tuple(parts) if isinstance(value, tuple) else type(value)(*parts)


def _parts(value: Any) -> list[Any]:
    if isinstance(value, tuple):
        return list(value)
    if is_dataclass(value):
        return [getattr(value, field.name) for field in fields(value)]
    raise TypeError(f"got {type(value).__name__}, expected tensors, tuples and dataclasses of them")
