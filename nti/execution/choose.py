"""Which backend computes and which execution runs the steps: a user's choice, or the best one that
passes its check.
"""

import dataclasses
import warnings
from functools import cache

import torch

from nti.config import SD_V1
from nti.execution.compiled import compiled_steps
from nti.execution.cuda_graph import Capture, capture_graph, captured_steps
from nti.execution.eager import eager_steps
from nti.execution.steps import Steps
from nti.kernels.backend import provides, resolve_backend
from nti.kernels.self_check import BOUND, failures, relative_error
from nti.networks.unet import UNet
from nti.sampling.schedule import Schedule
from nti.sampling.step import IterationInputs, begin

__all__ = ["EXECUTIONS", "choose_backend", "choose_execution", "graph_failure"]

EXECUTIONS = ("auto", "eager", "cuda-graph", "compiled")

PROBE = dataclasses.replace(
    SD_V1.unet, channels=32, channel_multipliers=(1, 2), res_blocks=1, attention_levels=(0, 1),
    heads=2, context_dim=32, norm_groups=8, word_map_level=0,
)  # fmt: skip
"""A small UNet, whose inner iteration stands for that of a large one."""


def choose_backend(backend: str, device: torch.device, dtype: torch.dtype) -> str:
    """Resolve a backend's name, and check Triton's kernels on this device before they are used.

    What `auto` chose and what fails a check is replaced by the reference, with one warning that
    names the checks. Raises ValueError where a backend that was asked for by name fails, or cannot
    be had (see `resolve_backend`).
    """
    chosen = resolve_backend(backend, device, dtype)
    if not provides(chosen, "cfg_attention"):
        return chosen
    found = failures(chosen, device, dtype)
    if not found:
        return chosen
    wrong = f"{chosen} on {device} in {dtype} fails its self-check ({'; '.join(found)})"
    if backend != "auto":
        raise ValueError(f"backend: {wrong}: choose backend='reference'")
    warnings.warn(f"backend: {wrong}; the reference computes instead, slower", stacklevel=3)
    return "reference"


def choose_execution(
    steps: Steps,
    execution: str,
    *,
    compiler: str = "inductor",
    capture: Capture = capture_graph,
) -> Steps:
    """Return the steps, run as asked for.

    Args:
        steps: of a network; who runs them now does not matter.
        execution: one of `EXECUTIONS`. `auto` is `cuda-graph` on CUDA if a small captured iteration
            agrees with an eager one, else `eager`.
        compiler: of `compiled`: a backend of torch.compile.
        capture: of `cuda-graph`: what makes a graph.

    Raises:
        ValueError: an unknown execution, or one that cannot be had or fails its check.

    """
    if execution not in EXECUTIONS:
        raise ValueError(f"execution: got {execution!r}, expected one of {', '.join(EXECUTIONS)}")
    eager = eager_steps(steps.unet)
    if execution == "compiled":
        return compiled_steps(eager, compiler=compiler)
    weight = steps.unet.conv_in.weight
    on_cuda = weight.device.type == "cuda" or capture is not capture_graph
    if execution == "eager" or (execution == "auto" and not on_cuda):
        return eager
    captured = captured_steps(eager, required=execution != "auto", capture=capture)
    wrong = graph_failure(steps.unet.backend, weight.device, weight.dtype, capture)
    if not wrong:
        return captured
    message = f"execution: a captured iteration on {weight.device} in {weight.dtype} fails its"
    if execution != "auto":
        raise ValueError(f"{message} self-check ({wrong}): choose execution='eager'")
    warnings.warn(f"{message} self-check ({wrong}); steps run launch by launch", stacklevel=3)
    return eager


@cache
@torch.inference_mode(mode=False)  # the small iteration learns, whatever mode the caller is in
def graph_failure(backend: str, device: torch.device, dtype: torch.dtype, capture: Capture) -> str:
    """Say what is wrong with a captured inner iteration that is replayed with other numbers.

    Returns:
        The error or the exception met, empty where nothing is wrong; remembered for the process.

    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        unet = UNet(PROBE, backend=backend).requires_grad_(False)
    unet = unet.to(device, dtype).to(memory_format=torch.channels_last)
    eager = eager_steps(unet)
    captured = captured_steps(eager, capture=capture)
    try:
        captured.null_text_iteration(_probe_inputs(captured, 0))
        found = captured.null_text_iteration(_probe_inputs(captured, 1))
        expected = eager.null_text_iteration(_probe_inputs(eager, 1))
    # Whatever a driver raises is what this is here to find.
    except Exception as trouble:
        return f"{type(trouble).__name__}: {trouble}; should CUDA fail from now on, start again"
    error = relative_error([found.adam.mean, found.losses], [expected.adam.mean, expected.losses])
    return "" if error <= BOUND else f"a relative error of {error:.2g}"


def _probe_inputs(steps: Steps, seed: int) -> IterationInputs:
    """Return inputs as an inversion has them, which were begun by these steps."""
    g, device = torch.Generator().manual_seed(seed), steps.unet.conv_in.weight.device

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g).to(device)

    schedule = Schedule.create(SD_V1.schedule, 50)
    context, latent = draw(1, 77, PROBE.context_dim), draw(1, 4, 8, 8)
    return IterationInputs.first(
        context,
        latent,
        schedule,
        seed,
        eps_cond=draw(1, 4, 8, 8),
        target=draw(1, 4, 8, 8),
        guidance_scale=7.5 + seed,
        learning_rate=1e-2 / (1 + seed),
        begun=begin(steps.noise, latent, schedule.timestep(seed, latent)),
    )
