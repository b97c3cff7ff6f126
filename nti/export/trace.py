"""A function as a graph whose weights are inputs by name, in the order in which a file holds them.

torch.export cannot trace the gradient of the iteration through functions with a backward pass of
their own. A tracer that sees each operation as it runs can: it records forward, backward and Adam
alike, and what it records is exported.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.func import functional_call
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from nti.export.functions import Function

__all__ = ["stored_weights", "traced"]

Rules = Mapping[Any, Callable[..., Any]]
"""By aten operation, what is recorded in its place."""

LAST = (0, 2, 3, 1)
"""The order of a convolution's weight in memory where it is in channels last."""
BACK = (0, 3, 1, 2)


def stored_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's weights and buffers by name, each as it lies in memory, contiguous.

    A convolution's weight in channels last is (out, height, width, in): so a reader maps the file
    as it is, and no stride can be wrong.
    """
    found = {}
    for name, weight in _tensors(module):
        plain = weight.detach()
        plain = plain.permute(LAST) if _is_channels_last(plain) else plain
        found[name] = plain.reshape(-1).view(plain.shape)  # sides of 1 have any stride else
    return found


def traced(
    function: Function, *, rules: Rules | None = None, attention: SDPBackend | None = None
) -> ExportedProgram:
    """Return a function as a program of aten operations.

    Args:
        function: which.
        rules: what is recorded in place of some operations, see `Rules`.
        attention: how attention is computed; None: as PyTorch chooses.

    """
    module = function.module
    stored = stored_weights(module)
    turned = {name for name, weight in _tensors(module) if _is_channels_last(weight)}
    inputs = tuple(function.inputs.values())

    def call(weights: dict[str, Tensor], *given: Tensor) -> tuple[Tensor, ...]:
        laid = {k: w.permute(BACK) if k in turned else w for k, w in weights.items()}
        outputs: tuple[Tensor, ...] = functional_call(module, laid, given)
        return outputs

    backends = list(SDPBackend.__members__.values()) if attention is None else [attention]
    with torch.no_grad(), sdpa_kernel([b for b in backends if b is not SDPBackend.ERROR]):
        graph = make_fx(call, decomposition_table=dict(rules or {}), tracing_mode="fake")(
            stored, *inputs
        )
        return torch.export.export(_Traced(stored, graph), inputs)


class _Traced(nn.Module):
    """A recorded graph that holds its weights under their names."""

    def __init__(self, weights: Mapping[str, Tensor], graph: GraphModule) -> None:
        super().__init__()
        self.names = list(weights)
        for name, weight in weights.items():
            *path, last = name.split(".")
            place: nn.Module = self
            for part in path:
                if part not in place._modules:
                    place.add_module(part, nn.Module())
                place = place.get_submodule(part)
            place.register_parameter(last, nn.Parameter(weight, requires_grad=False))
        self.graph = graph

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        weights = dict(self.named_parameters())
        outputs: tuple[Tensor, ...] = self.graph({k: weights[k] for k in self.names}, *inputs)
        return outputs


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _is_channels_last(weight: Tensor) -> bool:
    """Whether a weight's channels lie beside each other. Of a 1 x 1 kernel its strides tell."""
    return weight.ndim == 4 and weight.stride(1) == 1 and weight.stride(3) == weight.shape[1] > 1
