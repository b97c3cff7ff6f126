"""The steps as CUDA graphs: no launch overhead, and nothing to compile."""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cache
from threading import Lock, RLock
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nti.execution.eager import eager_steps, noise_of
from nti.execution.leaves import cloned, shape_key, tensors
from nti.execution.steps import Steps
from nti.sampling.step import NoiseWithBeginning

__all__ = ["Capture", "GraphStore", "capture_graph", "captured_steps"]

WARMUP = 1
"""Calls before the capture, in which kernels are compiled and libraries choose theirs."""

MOST_GRAPHS = 16
"""Graphs that a model keeps; beyond, the one that was not used for longest goes. An inversion takes
four, an edit two."""

ONE_AT_A_TIME = Lock()
"""PyTorch captures one graph at a time in a process."""

Function = Callable[..., Any]
Capture = Callable[[Function, tuple[Any, ...], Any], tuple[Callable[[], object], Any]]
"""(function, arguments, pool) -> what replays the call on these very tensors, and its results."""


def capture_graph(
    function: Function, arguments: tuple[Any, ...], pool: Any = None
) -> tuple[Callable[[], object], Any]:
    """Capture one call on these very tensors; return what replays it, and the results it fills.

    Other threads may go on meanwhile, but not wait for the whole device nor draw random numbers
    there. Raises RuntimeError for a function that cannot be captured.
    """
    here = torch.cuda.current_stream()
    stream = _side_stream(here.device)
    graph = torch.cuda.CUDAGraph()
    # On a stream of this device: left to itself PyTorch captures on one for all devices.
    with ONE_AT_A_TIME, torch.cuda.stream(stream):
        stream.wait_stream(here)
        for _ in range(WARMUP):
            function(*arguments)
        # A graph uses its own memory for products, which nobody else does or can give back.
        torch._C._cuda_clearCublasWorkspaces()
        try:
            with torch.cuda.graph(
                graph, pool=pool, stream=stream, capture_error_mode="thread_local"
            ):
                results = function(*arguments)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RuntimeError(
                "CUDA graph: got an error while capturing a step, which expects that it stays on"
                " the device: leave it eager (execution='eager', --execution eager); what went"
                f" wrong first: {error.__context__ or error}"
            ) from error
        finally:
            torch._C._cuda_clearCublasWorkspaces()
    here.wait_stream(stream)
    return graph.replay, results


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Return one stream a device: libraries keep memory for each that they have seen."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def captured_steps(
    steps: Steps, *, required: bool = True, capture: Capture = capture_graph
) -> Steps:
    """Return the same steps, captured at the first call with arguments of a shape, then replayed.

    Args:
        steps: of a network on CUDA; who runs them now does not matter.
        required: True: too little memory to capture is an error. False: it is a warning, and the
            step runs eagerly.
        capture: what makes a graph.

    Raises:
        ValueError: a network that is not on CUDA.

    """
    device = steps.unet.conv_in.weight.device
    if capture is capture_graph and device.type != "cuda":
        raise ValueError(
            f"execution: got 'cuda-graph' on {device}, expected a model on CUDA: load it with"
            " device='cuda', or choose execution='eager'"
        )
    plain, eps = eager_steps(steps.unet), noise_of(steps.unet)
    graphs = GraphStore(capture, required=required)
    return Steps(
        unet=steps.unet,
        noise=NoiseWithBeginning(graphs.wrap(eps.run), graphs.wrap(eps.begin)),
        guided_step=graphs.wrap(plain.guided_step),
        controlled_noise=graphs.wrap(plain.controlled_noise),
        null_text_iteration=graphs.wrap(plain.null_text_iteration),
        execution="cuda-graph",
    )


class _Graph(NamedTuple):
    """One captured call."""

    places: list[Tensor | None]
    """Where it reads its arguments."""
    replay: Callable[[], object]
    results: Any
    """Where it leaves its results."""


class GraphStore:
    """All graphs of a model, on one pool of memory, of which one runs at a time.

    What a step reads is copied to where its graph reads it, the graph is replayed, and its results
    are copied to memory of the caller's: one locked whole.
    """

    def __init__(self, capture: Capture, *, required: bool = True, most: int = MOST_GRAPHS) -> None:
        self.capture, self.required, self.most = capture, required, most
        self.graphs: OrderedDict[object, _Graph | None] = OrderedDict()
        self.lock = RLock()
        self.pool: Any = None
        self.last: torch.cuda.Event | None = None

    def wrap(self, function: Function) -> Function:
        """Return a function of tensors that captures itself, and then replays."""

        def step(*arguments: Any) -> Any:
            return self._run(function, arguments)

        return step

    def _run(self, function: Function, arguments: tuple[Any, ...]) -> Any:
        given = tensors(arguments)
        here = next(x for x in given if x is not None)
        # Memory that is made in inference mode could not be written to outside of it.
        with (
            self.lock,
            torch.inference_mode(mode=False),
            torch.no_grad(),
            torch.cuda.device_of(here),  # type: ignore[no-untyped-call]
        ):
            graph = self._graph(function, arguments, (function, *shape_key(given)))
            if graph is None:
                return function(*arguments)
            self._wait(here)
            for place, value in zip(graph.places, given, strict=True):
                if place is not None and value is not None:
                    place.copy_(value)
            graph.replay()
            results = cloned(graph.results)
            self._done(here)
            return results

    def _graph(
        self, function: Function, arguments: tuple[Any, ...], key: object
    ) -> "_Graph | None":
        """Return the graph for arguments of this shape; None where there is no memory for one."""
        if key in self.graphs:
            self.graphs.move_to_end(key)
            return self.graphs[key]
        while len(self.graphs) >= self.most:
            if self.last is not None:
                self.last.synchronize()  # it may be the one that runs, on another stream
            self.graphs.popitem(last=False)
        self.graphs[key] = self._captured(function, cloned(arguments))
        return self.graphs[key]

    def _captured(self, function: Function, kept: tuple[Any, ...]) -> "_Graph | None":
        try:
            if self.pool is None and torch.cuda.is_available():
                self.pool = torch.cuda.graph_pool_handle()
            return _Graph(tensors(kept), *self.capture(function, kept, self.pool))
        except RuntimeError as error:
            # Its words alone: an error holds on to its frames, and so to what the capture made.
            no_memory = next((str(e) for e in _chain(error) if _is_no_memory(e)), None)
            if no_memory is None or self.required:
                raise
            warnings.warn(
                f"CUDA graph: no memory to capture this step ({no_memory}); it runs without, launch"
                " by launch, and slower",
                stacklevel=2,
            )
            return None

    def _wait(self, here: Tensor) -> None:
        """Let this stream wait for the last replay, which another stream may still run."""
        if here.is_cuda and self.last is not None:
            torch.cuda.current_stream().wait_event(self.last)

    def _done(self, here: Tensor) -> None:
        if here.is_cuda:
            self.last = torch.cuda.current_stream().record_event()


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_no_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error).lower()
