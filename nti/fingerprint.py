"""A few numbers of each weight, by which a model is known again in another layout or dtype."""

from collections.abc import Mapping
from dataclasses import dataclass

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
    """Samples of the weights of UNet, text encoder and autoencoder.

    The same checkpoint in float32, float16 or bfloat16, and in any layout, has samples that differ
    by rounding alone. Of a fine-tune some differ by more.
    """

    samples: Mapping[str, Tensor]
    """By network, each (N,) float32 on the CPU, in the order of the weights' sorted names."""

    @classmethod
    def of(cls, networks: Mapping[str, nn.Module]) -> "Fingerprint":
        """Read `SAMPLES` values of each weight of the networks `unet`, `text` and `vae`."""
        return cls({name: _samples(networks[name]) for name in NETWORKS})

    def differing(self, other: "Fingerprint") -> list[str]:
        """Return the networks whose weights are not the other's, rounding aside."""
        return [name for name in NETWORKS if not _alike(self.samples[name], other.samples[name])]


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
