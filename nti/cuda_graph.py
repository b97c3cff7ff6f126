"""A pure function of tensors as a CUDA graph: no launch overhead, and nothing to compile."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["CudaGraph", "record"]

WARMUP = 3
"""Calls before the recording, in which libraries choose their algorithms."""

Function = Callable[..., Any]
Recorder = Callable[[Function, tuple[Any, ...]], tuple[Callable[[], object], Any]]


def record(function: Function, arguments: tuple[Any, ...]) -> tuple[Callable[[], object], Any]:
    """Record one call on these very tensors; return what replays it, and the results it fills."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUP):
            function(*arguments)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function(*arguments)
    return graph.replay, results


class CudaGraph:
    """A function that is recorded at its first call with arguments of a shape, then replayed.

    Arguments and results are tensors, None, tuples and dataclasses of them. The results are
    overwritten by the next call: copy what has to stay.
    """

    def __init__(self, function: Function, recorder: Recorder = record) -> None:
        self.function, self.recorder = function, recorder
        self.recorded: dict[object, tuple[list[Tensor | None], Callable[[], object], Any]] = {}

    def __call__(self, *arguments: Any) -> Any:
        """Copy the arguments to where the recording reads them, and replay it."""
        given = _tensors(arguments)
        here = next(x for x in given if x is not None)
        with torch.cuda.device_of(here):  # type: ignore[no-untyped-call]
            return self._replay(arguments, given)

    def _replay(self, arguments: tuple[Any, ...], given: list[Tensor | None]) -> Any:
        key = tuple(None if x is None else (x.shape, x.stride(), x.dtype) for x in given)
        if key not in self.recorded:
            kept = _copied(arguments)
            self.recorded[key] = (_tensors(kept), *self.recorder(self.function, kept))
        places, replay, results = self.recorded[key]
        for place, value in zip(places, given, strict=True):
            if place is not None and value is not None:
                place.copy_(value)
        replay()
        return results


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
