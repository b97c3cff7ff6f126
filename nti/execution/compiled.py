"""The steps by torch.compile, each as one graph for each shape of its arguments."""

from collections.abc import Callable
from functools import partial
from threading import Lock
from typing import Any

import torch

from nti.execution.eager import eager_steps
from nti.execution.leaves import cloned, shape_key, tensors
from nti.execution.steps import Steps
from nti.kernels.backend import without_fusion

__all__ = ["compiled_steps", "compiles"]

COMPILES_FROM = (2, 11)
"""The first PyTorch that traces a gradient through functions with a backward pass of their own."""

Function = Callable[..., Any]


def compiles() -> bool:
    """Whether this PyTorch is new enough, be it a pre-release."""
    major, minor = torch.__version__.split(".")[:2]
    return (int(major), int(minor)) >= COMPILES_FROM


def compiled_steps(steps: Steps, *, compiler: str | Function = "inductor") -> Steps:
    """Return the same steps, compiled at the first call with arguments of a shape.

    That call takes minutes. All timesteps share a graph, as all that changes is a tensor. To have
    fewer graphs, each begins at the latent: the noise has no `begin` (`nti.sampling.step`). By
    `inductor` on CUDA what follows is replayed as a CUDA graph.

    Args:
        steps: of the network; who runs them now does not matter.
        compiler: a backend of torch.compile, by name or as a function.

    Raises:
        ValueError: a PyTorch older than 2.11, which cannot trace the inner iteration; an unknown
        compiler; a network that computes its blocks again in the backward pass.

    """
    if not compiles():
        raise ValueError(
            f"torch: got {torch.__version__}, expected 2.11 or newer to compile the steps:"
            " upgrade it, or choose execution='cuda-graph' or 'eager'"
        )
    known = torch.compiler.list_backends(exclude_tags=())
    if isinstance(compiler, str) and compiler not in known:
        raise ValueError(f"compiler: got {compiler!r}, expected one of {', '.join(known)}")
    unet = steps.unet
    if unet.recompute:
        raise ValueError(
            "execution: got 'compiled' for a model with memory='low', whose blocks torch.compile"
            " cannot trace: load it with memory='normal', or choose another execution"
        )
    plain = eager_steps(unet.with_backend(without_fusion(unet.backend)))
    replays = compiler == "inductor" and unet.conv_in.weight.device.type == "cuda"
    compiled = partial(_CompiledStep, compiler=compiler, replays=replays)
    return Steps(
        unet=unet,
        noise=compiled(plain.noise),
        guided_step=compiled(plain.guided_step),
        controlled_noise=compiled(plain.controlled_noise),
        null_text_iteration=compiled(plain.null_text_iteration),
        execution="compiled",
        one_layout=True,
    )


class _CompiledStep:
    """A step with a compiled function for each shape.

    torch.compile keeps at most eight graphs for the code of one function, and fails beyond. So
    each shape compiles a copy of the code.
    """

    def __init__(self, function: Function, compiler: str | Function, replays: bool) -> None:
        self.function, self.compiler, self.replays = function, compiler, replays
        self.lock = Lock()
        self.by_shape: dict[tuple[object, ...], Function] = {}

    def __call__(self, *arguments: Any) -> Any:
        key = shape_key(tensors(arguments))
        with self.lock:
            if key not in self.by_shape:
                self.by_shape[key] = self._compiled()
            step = self.by_shape[key]
        if not self.replays:
            return step(*arguments)
        with self.lock:
            # The next call's graph may use the memory of these results.
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            return cloned(step(*arguments))

    def _compiled(self) -> Function:
        function = self.function

        def step(*arguments: Any) -> Any:
            return function(*arguments)

        step.__code__ = step.__code__.replace()
        mode = "reduce-overhead" if self.replays else None
        compiled: Function = torch.compile(
            step, fullgraph=True, dynamic=False, backend=self.compiler, mode=mode
        )
        return compiled
