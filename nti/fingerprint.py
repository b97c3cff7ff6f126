"""What a model is known by in another layout or dtype: samples of its weights, and its numbers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["NETWORKS", "Fingerprint"]

NETWORKS = ("unet", "text", "vae")

SAMPLES = 4
"""Values of each weight, evenly spaced."""

ROUNDING = {torch.bfloat16: 2.0**-8 + 2.0**-11, torch.float16: 2.0**-11, torch.float32: 2.0**-24}
"""By how much of itself a number may change when it is rounded to a dtype, the coarsest first. What
is bfloat16 may have been float16 before."""

SMALLEST = 2.0**-24
"""Half precision has no smaller number, so a difference of this is one of rounding, too."""


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """Samples of the weights of UNet, text encoder and autoencoder, and what else they compute by.

    The same checkpoint in float32, float16 or bfloat16, and in any layout, has samples that differ
    by rounding alone. Of a fine-tune some differ by more.
    """

    samples: Mapping[str, Tensor]
    """By network, each (N,) float32 on the CPU, in the order of the weights' sorted names."""
    numbers: Mapping[str, Mapping[str, Any]]
    """By network, what no weight holds, as JSON can: heads, levels, schedule, scale."""

    @classmethod
    def of(
        cls, networks: Mapping[str, nn.Module], numbers: Mapping[str, Mapping[str, Any]]
    ) -> "Fingerprint":
        """Read `SAMPLES` values of each weight of the networks `unet`, `text` and `vae`."""
        plain: dict[str, dict[str, Any]] = json.loads(json.dumps(numbers))
        return cls({name: _samples(networks[name]) for name in NETWORKS}, plain)

    def differing(self, other: "Fingerprint") -> list[str]:
        """Return the networks that are not the other's, in weights (rounding aside) or numbers."""
        return [
            name
            for name in NETWORKS
            if self.numbers[name] != other.numbers[name]
            or not _alike(self.samples[name], other.samples[name])
        ]


@torch.no_grad()
def _samples(network: nn.Module) -> Tensor:
    values = []
    for _, weight in sorted(network.named_parameters()):
        spaced = (torch.arange(SAMPLES) * 2 + 1) * weight.numel() // (2 * SAMPLES)
        # By its indices, as a weight in channels last has no flat view.
        values.append(weight[torch.unravel_index(spaced.to(weight.device), weight.shape)])
    return torch.cat(values).float().cpu()


def _alike(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    # Of what both were rounded to, the file's dtype counts and not the one they are held in.
    share = 1.01 * (_rounding(a) + _rounding(b))  # a product of two roundings is more than a sum
    return bool(((a - b).abs() <= share * torch.maximum(a.abs(), b.abs()) + SMALLEST).all())


def _rounding(values: Tensor) -> float:
    """Return the rounding of the coarsest dtype that holds all values exactly."""
    exact = (share for dtype, share in ROUNDING.items() if (values.to(dtype) == values).all())
    return next(exact, 1.0)
