"""Every exported function beside the model's own, on random inputs."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nti.export.exported import Exported
from nti.export.functions import functions_of
from nti.model import StableDiffusion

__all__ = ["Difference", "differences"]

TOLERANCES = {"float64": 1e-10, "float32": 2e-5, "float16": 2e-2, "bfloat16": 1e-1}
"""Of the largest difference from the model's own output, as a share of its largest value."""

OF_UPDATE = 1e-2
"""Of the embeddings after an iteration, as a share of the largest change. Adam divides by the
gradient's own size, so rounding grows where a gradient is near zero. Without its epsilon the
difference is as large as the change.
"""


@dataclass(frozen=True)
class Difference:
    """How far one output of a function is from the model's own."""

    function: str
    output: str
    error: float
    """The largest difference as a share of the largest value."""
    allowed: float

    @property
    def fits(self) -> bool:
        """Whether it is rounding."""
        return self.error <= self.allowed


def differences(model: StableDiffusion, exported: Exported) -> Iterator[Difference]:
    """Compare all outputs of all functions: of the iteration the new embeddings, too.

    Its loss and gradient can be right where Adam's update is not. The inputs are others than those
    that were traced. The iteration runs with all images active, and with one that has stopped.
    """
    manifest = exported.manifest
    size = (manifest.image[3], manifest.image[2])
    functions = functions_of(model, size, manifest.batch, manifest.edits, seed=1)
    (stopped,) = (each for each in functions if each.name == "iteration")
    active = torch.ones_like(stopped.inputs["active"])
    functions.append(replace(stopped, inputs={**stopped.inputs, "active": active}))
    for function in functions:
        if function.name not in manifest.functions:
            continue
        inputs = list(function.inputs.values())
        with torch.no_grad():
            expected = function.module(*inputs)
        found = exported(function.name, *inputs)
        for name, ours, theirs in zip(function.outputs, found, expected, strict=True):
            scale, allowed = theirs, TOLERANCES[manifest.dtype]
            if name == "new_uncond":
                scale, allowed = theirs - function.inputs["uncond"], max(allowed, OF_UPDATE)
                if not function.inputs["active"].any():
                    scale, allowed = theirs, 0.0  # it keeps its embedding
            yield Difference(function.name, name, _difference(ours, theirs, scale), allowed)


def _difference(found: Tensor, expected: Tensor, scale: Tensor) -> float:
    """Return the largest difference as a share of another tensor's largest value."""
    largest = scale.double().abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    return float((found.double() - expected.double()).abs().max() / largest)
