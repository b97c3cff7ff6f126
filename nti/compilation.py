"""The functions that a runtime calls over and over, each as one graph."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nti.cuda_graph import CudaGraph
from nti.model import StableDiffusion
from nti.networks.control import AttentionCapture, AttentionControl
from nti.networks.unet import Begun
from nti.sampling.schedule import StepCoefficients
from nti.sampling.step import AdamState

__all__ = ["CompiledModel", "compile_model", "compiles", "recorded"]

COMPILES_FROM = (2, 11)
"""The first PyTorch that traces a gradient through functions with a backward pass of their own."""


def compile_model(
    model: StableDiffusion, *, backend: str | Callable[..., Any] = "inductor"
) -> "CompiledModel":
    """Return the same model with its steps as graphs, one for each shape and not for each timestep.

    The networks are shared. By `torch.compile` the first call of each step takes minutes; on CUDA
    what follows is replayed as a CUDA graph.

    Args:
        model: the model.
        backend: torch.compile's, or `cuda-graph`: nothing is compiled, the first call of each step
            is recorded as a CUDA graph, and what follows has no launch overhead.

    Raises:
        ValueError: `cuda-graph` for a model that is not on CUDA; torch.compile with a PyTorch older
            than 2.11, which cannot trace the inner iteration.

    """
    if isinstance(model, CompiledModel):
        return model
    cuda = model.device.type == "cuda"
    if backend == "cuda-graph":
        if not cuda:
            raise ValueError(
                f"backend: got 'cuda-graph' on {model.device}, expected a model on CUDA:"
                " load it with device='cuda', or leave the backend out"
            )
        return CompiledModel(model, CudaGraph)
    if not compiles():
        raise ValueError(
            f"torch: got {torch.__version__}, expected 2.11 or newer to compile the steps:"
            " upgrade it, record CUDA graphs instead (backend='cuda-graph', --cuda-graph), or leave"
            " them eager"
        )
    return CompiledModel(
        model,
        partial(
            _compiled,
            backend=backend,
            mode="reduce-overhead" if cuda and backend == "inductor" else None,
        ),
    )


def recorded(model: StableDiffusion) -> StableDiffusion:
    """Return the model with steps that are recorded as CUDA graphs, if it is on CUDA and eager and
    its `cuda_graph` allows.

    The graphs and their memory last as long as what is returned. A step that there is no memory to
    record runs as it is, after a warning.
    """
    eager = not isinstance(model, CompiledModel)
    if not (eager and model.cuda_graph and model.device.type == "cuda"):
        return model
    return CompiledModel(model, partial(CudaGraph, required=False))


def _compiled(function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    step = torch.compile(function, fullgraph=True, dynamic=False, **settings)

    def call(*arguments: Any) -> Any:
        # CUDA graphs may reuse the memory of the last call's results, which were copied.
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return step(*arguments)

    return call


def compiles() -> bool:
    """Whether this PyTorch is new enough, be it a pre-release."""
    major, minor = torch.__version__.split(".")[:2]
    return (int(major), int(minor)) >= COMPILES_FROM


class CompiledModel(StableDiffusion):
    """A model whose inner iteration, noise, guided step and controlled noise are one graph each."""

    def __init__(
        self, model: StableDiffusion, graph: Callable[[Callable[..., Any]], Callable[..., Any]]
    ) -> None:
        """`graph` turns a step into one whose results its next call may overwrite."""
        vars(self).update(vars(model))
        self._step = graph(model.guided_step)
        self._finish = graph(model.finish)
        self._iteration = graph(model.null_text_iteration)
        self._controlled = graph(model.predict_noise_controlled)

    def finish(self, begun: Begun, context: Tensor) -> Tensor:
        """eps_theta(z_t, t, C) of a latent begun: see `StableDiffusion`."""
        out: Tensor = self._finish(begun, context)
        return out.clone()

    def guided_step(
        self,
        latent: Tensor,
        timestep: int | Tensor,
        uncond: Tensor,
        cond: Tensor,
        coefficients: StepCoefficients,
        guidance_scale: float | Tensor,
    ) -> Tensor:
        """z_t -> z_{t-1}: see `nti.sampling.step.guided_step`."""
        out: Tensor = self._step(
            latent,
            _tensor(timestep, latent, torch.int64),
            uncond,
            cond,
            coefficients.to(latent),
            _tensor(guidance_scale, latent),
        )
        return out.clone()

    def null_text_iteration(
        self,
        begun: Begun,
        uncond: Tensor,
        adam: AdamState,
        latent: Tensor,
        eps_cond: Tensor,
        target: Tensor,
        coefficients: StepCoefficients,
        guidance_scale: float | Tensor,
        learning_rate: float | Tensor,
        active: Tensor,
    ) -> tuple[Tensor, AdamState, Tensor]:
        """One inner iteration: see `nti.sampling.step.null_text_iteration`."""
        updated, state, loss = self._iteration(
            begun,
            uncond,
            adam,
            latent,
            eps_cond,
            target,
            coefficients.to(latent),
            _tensor(guidance_scale, latent),
            _tensor(learning_rate, latent),
            active,
        )
        state = AdamState(state.mean.clone(), state.square.clone(), state.count.clone())
        return updated.clone(), state, loss.clone()

    def predict_noise_controlled(
        self,
        latent: Tensor,
        timestep: int | Tensor,
        context: Tensor,
        control: AttentionControl | None,
        capture: AttentionCapture | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """See `StableDiffusion`; a call that captures maps is not compiled."""
        if capture is not None:
            return super().predict_noise_controlled(latent, timestep, context, control, capture)
        t = _tensor(timestep, latent, torch.int64)
        eps, maps = self._controlled(latent, t, context, control)
        return eps.clone(), None if maps is None else maps.clone()


def _tensor(value: float | Tensor, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return a number as a 0-d tensor, as a Python number would become part of the graph."""
    dtype = dtype or like.dtype
    if isinstance(value, Tensor):
        return value.to(like.device, dtype)
    return like.new_full((), value, dtype=dtype)
