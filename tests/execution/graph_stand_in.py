"""A stand-in for CUDA graphs on the CPU, which replays what was dispatched and calls no Python."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Tape", "capture"]


class Tape(TorchDispatchMode):
    """Keep each op with the very tensors that it read and made.

    A replay runs the ops again on those tensors and overwrites what they made. So a number that was
    read in Python stays as it was, as it does in a graph.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(
        self, op: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = op(*args, **(kwargs or {}))
        self.calls.append((op, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        """Run every op again, in order."""
        with torch.no_grad():
            for op, args, kwargs, made in self.calls:
                if op.is_view:
                    continue  # it looks at memory that is filled by now
                read = {x.untyped_storage()._cdata for x in _tensors((args, kwargs))}
                again = op(*args, **kwargs)
                for place, value in zip(_tensors(made), _tensors(again), strict=True):
                    # What an op writes in place, or looks at, it has written.
                    if place.untyped_storage()._cdata not in read:
                        place.copy_(value)


def capture(
    function: Callable[..., Any], arguments: tuple[Any, ...], pool: object = None
) -> tuple[Callable[[], None], Any]:
    """Capture one call on these very tensors, as `nti.execution.cuda_graph.capture_graph` does."""
    tape = Tape()
    with tape:
        results = function(*arguments)
    return tape.replay, results


def _tensors(value: Any) -> list[Tensor]:
    return [x for x in tree_leaves(value) if isinstance(x, Tensor)]
