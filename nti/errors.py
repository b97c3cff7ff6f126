"""What can go wrong while a run is going on."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

__all__ = [
    "BatchError",
    "Callback",
    "NotFiniteError",
    "Stopped",
    "check_finite",
    "is_out_of_memory",
    "part_of",
    "report",
]

Callback = Callable[[int, int], object]
"""Called with (steps done, steps in all) after every step. Returning True stops the run."""


class NotFiniteError(ValueError):
    """Values that are infinite or NaN, as after an overflow in half precision."""


class BatchError(ValueError):
    """Some images of a batch that failed; what became of the others is not lost.

    `results` has one entry an image, None where it failed, and `errors` the exception of each that
    did, by its number in the batch.
    """

    def __init__(self, results: Sequence[object], errors: Mapping[int, Exception]) -> None:
        told = "; ".join(f"image {i}: {error}" for i, error in sorted(errors.items()))
        super().__init__(f"{len(errors)} of {len(results)} images failed: {told}")
        self.results, self.errors = list(results), dict(errors)


class Stopped(RuntimeError):
    """A run that its callback has stopped."""

    def __init__(self, done: int, total: int) -> None:
        super().__init__(f"stopped by the callback after step {done} of {total}")
        self.done, self.total = done, total


def check_finite(
    values: Tensor, what: str, dtype: torch.dtype, *, spare_rows: bool = False
) -> None:
    """Raise NotFiniteError unless all values are finite.

    Args:
        values: any shape.
        what: what was computed, and at which step.
        dtype: what the network that computed it computes in.
        spare_rows: raise only where no row (the first dimension) is finite: the images of a batch
            do not depend on each other.

    """
    finite = values.isfinite()
    if not (finite.flatten(1).all(dim=1).any() if spare_rows else finite.all()):
        advice = (
            "use bfloat16, which overflows later, or float32"
            if dtype == torch.float16
            else "look for extreme factors, guidance or inputs, or damaged weights"
        )
        raise NotFiniteError(f"{what}: got values that are not finite, in {dtype}: {advice}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory has run out: PyTorch's error, on a CPU any RuntimeError by its class."""
    told = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in told or "allocate" in told)
    )


def report(callback: Callback | None, done: int, total: int) -> None:
    """Tell a callback that a step is done; raise Stopped if it returns True."""
    if callback is not None and callback(done, total) is True:
        raise Stopped(done, total)


def part_of(callback: Callback | None, before: int, total: int) -> Callback | None:
    """Return the callback of one part of a run, which counts `before` steps as done already.

    `total` is the number of steps of the whole run.
    """
    if callback is None:
        return None
    return lambda done, _: report(callback, before + done, total)
