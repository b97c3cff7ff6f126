"""The three functions that a runtime calls over and over, each compiled as one graph."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nti.model import StableDiffusion
from nti.networks.control import AttentionCapture, AttentionControl
from nti.networks.unet import Begun
from nti.sampling.schedule import StepCoefficients
from nti.sampling.step import AdamState

__all__ = ["CompiledModel", "compile_model"]


def compile_model(
    model: StableDiffusion, *, backend: str | Callable[..., Any] = "inductor"
) -> "CompiledModel":
    """Return the same model with its steps compiled, once for each shape and not for each timestep.

    The networks are shared. The first call of each step takes minutes; on CUDA what follows is
    replayed as a CUDA graph.

    Args:
        model: the model.
        backend: torch.compile's.

    """
    return model if isinstance(model, CompiledModel) else CompiledModel(model, backend)


class CompiledModel(StableDiffusion):
    """A model whose inner iteration, guided step and controlled noise are one graph each."""

    def __init__(self, model: StableDiffusion, backend: str | Callable[..., Any]) -> None:
        super().__init__(model.config, model.unet, model.vae, model.text, model.tokenizer)
        graphs = backend == "inductor" and model.device.type == "cuda"
        compiled = partial(
            torch.compile,
            fullgraph=True,
            dynamic=False,
            backend=backend,
            mode="reduce-overhead" if graphs else None,
        )
        self._step = compiled(model.guided_step)
        self._iteration = compiled(model.null_text_iteration)
        self._controlled = compiled(model.predict_noise_controlled)

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
        _new_step()
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
        _new_step()
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
        _new_step()
        t = _tensor(timestep, latent, torch.int64)
        eps, maps = self._controlled(latent, t, context, control)
        return eps.clone(), None if maps is None else maps.clone()


def _tensor(value: float | Tensor, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return a number as a 0-d tensor: a Python number would be compiled into the graph."""
    return torch.as_tensor(value, dtype=dtype or like.dtype, device=like.device)


def _new_step() -> None:
    """Let CUDA graphs reuse the memory of the last call's results, which were copied."""
    torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
