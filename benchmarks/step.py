"""Section `step`: one inner iteration of null-text optimization, as a ladder from the published
loop.

`published` leaves the weights trainable; `frozen` is the same loop with that one line repaired.
`nti` is what ships on a CPU, and on CUDA `nti, CUDA graph`, the same recorded. Three rows are it
without one thing: `nti contiguous` without the channels-last layout (and convolutions as products,
which need it), `nti, PyTorch's layers` with linear layers, convolutions, attention and feed-forward
by PyTorch on a CPU, `nti every time` without computing once what does not depend on the embedding.
On CUDA the eager and the recorded step are timed without the Triton kernels of norms and gates, too
(`nti contiguous` never has them, as they would undo it); section `compile` times it compiled.
"""

import copy
import time
from collections.abc import Callable
from functools import partial
from unittest import mock

import torch
from nti.kernels.linear import is_onednn
from torch import Tensor

from cases import (
    StepInputs,
    iteration_arguments,
    moment_after,
    random_model,
    refuse_wrong,
    shipped_iteration,
    step_inputs,
)
from nti.compilation import compile_model
from nti.config import SD_V1, ModelConfig
from nti.model import StableDiffusion
from nti.networks.frozen import FeedForward, GroupNorm
from nti.networks.unet import Begun
from nti.sampling.step import null_text_iteration
from peers import PublishedLoop, diffusers_unet
from roofline import begun_tflop, iteration_tflop
from rows import Row, make_row
from timing import child_peak_mib, interleaved

__all__ = ["PEAKS", "compiled", "step"]

PEAKS = ("published", "frozen", "nti", "nti, low memory")
"""Whose memory is measured, each in a process of its own; on CUDA also the recorded step's."""


def _every_time(model: StableDiffusion, x: StepInputs) -> Tensor:
    predict = partial(model.predict_noise, x.latent, x.timestep)
    return moment_after(null_text_iteration(predict, *iteration_arguments(x)))


def _recomputing(model: StableDiffusion, begun: Begun, x: StepInputs) -> Tensor:
    model.unet.recompute = True
    moment = shipped_iteration(model, begun, x)
    model.unet.recompute = False
    return moment


def _by_pytorch(model: StableDiffusion, begun: Begun, x: StepInputs) -> Tensor:
    with mock.patch("nti.networks.frozen.is_onednn", return_value=False):
        return shipped_iteration(model, begun, x)


def _with_pytorchs_norms(model: StableDiffusion) -> StableDiffusion:
    """Return a copy that has its norms and GEGLU by PyTorch and shares the weights."""
    weights = {id(parameter): parameter for parameter in model.unet.parameters()}
    unet = copy.deepcopy(model.unet, weights)
    for module in unet.modules():
        if isinstance(module, GroupNorm | FeedForward):
            module.backend = "reference"
    return StableDiffusion(model.config, unet, model.vae, model.text, model.tokenizer)


def step(
    config: ModelConfig, side: int, repeats: int, dtype: torch.dtype, device: torch.device
) -> list[Row]:
    """Time the ladder on an image of `side` pixels."""
    # First: both do not fit into the memory at once.
    arguments = ["--side", str(side), "--dtype", str(dtype).removeprefix("torch.")]
    arguments += [] if config is SD_V1 else ["--quick"]
    measured = (*PEAKS, "nti, CUDA graph") if device.type == "cuda" else PEAKS
    peaks = {name: child_peak_mib([name, *arguments]) for name in measured}
    model = random_model(config, dtype, device)
    unet = diffusers_unet(model.unet)
    contiguous = _with_pytorchs_norms(random_model(config, dtype, device))
    contiguous.unet.load_state_dict(
        {k: v.contiguous() for k, v in model.unet.state_dict().items()}, assign=True
    )
    x = step_inputs(config, side, device, model.predict_noise)
    begun = model.begin(x.latent, x.timestep)
    calls: dict[str, Callable[[], Tensor]] = {
        "published": partial(PublishedLoop(unet, frozen=False).iterate, x),
        "frozen": partial(PublishedLoop(unet, frozen=True).iterate, x),
        "nti contiguous": partial(
            shipped_iteration, contiguous, contiguous.begin(x.latent, x.timestep), x
        ),
        "nti every time": partial(_every_time, model, x),
        # What is begun once a timestep serves ten iterations.
        "nti": partial(shipped_iteration, model, begun, x),
        "nti, low memory": partial(_recomputing, model, begun, x),
    }
    if is_onednn(model.unet.conv_in.weight):
        calls["nti, PyTorch's layers"] = partial(_by_pytorch, model, begun, x)
    if device.type == "cuda":
        recorded = compile_model(model, backend="cuda-graph")
        calls["nti, CUDA graph"] = partial(shipped_iteration, recorded, begun, x)
        plain = _with_pytorchs_norms(model)
        calls["nti, PyTorch's norms"] = partial(shipped_iteration, plain, begun, x)
        graph = compile_model(plain, backend="cuda-graph")
        calls["nti, CUDA graph, PyTorch's norms"] = partial(shipped_iteration, graph, begun, x)
        # Recorded with other numbers than those that are checked.
        other = step_inputs(config, side, device, model.predict_noise, seed=1)
        for each in (recorded, graph):
            shipped_iteration(each, model.begin(other.latent, other.timestep), other)
    exact = unet if dtype == torch.float32 else copy.deepcopy(unet).float()
    expected = PublishedLoop(exact, frozen=True).iterate(x)
    times = interleaved(calls, repeats)
    whole, begun_before = iteration_tflop(config, side), begun_tflop(config, side)
    rows = []
    for name, call in calls.items():
        error = float((call() - expected).norm() / expected.norm())
        if name.startswith("nti") or dtype == torch.float32:  # half precision may lose a peer's
            refuse_wrong(f"step, {name}", error, dtype, 1e-3)
        imports, memory = peaks.get(name, (0.0, 0.0))
        every_time = name in ("published", "frozen", "nti every time")
        rows.append(
            make_row(
                "step", name, f"{config.unet.channels} channels, {side} px", dtype=dtype,
                milliseconds=times[name], peak_mib=memory, imports_mib=imports, quality=error,
                unit="from the frozen loop's gradient in float32",
                tflop=whole if every_time else whole - begun_before,
            )
        )  # fmt: skip
    return rows


def compiled(
    config: ModelConfig, side: int, repeats: int, dtype: torch.dtype, device: torch.device
) -> list[Row]:
    """Time the compiled inner iteration against the eager one; its first call has its own row."""
    model = random_model(config, dtype, device)
    x = step_inputs(config, side, device, model.predict_noise)
    begun = model.begin(x.latent, x.timestep)
    fast = compile_model(model)
    expected = shipped_iteration(model, begun, x)
    started = time.perf_counter()
    error = float((shipped_iteration(fast, begun, x) - expected).norm() / expected.norm())
    first = 1e3 * (time.perf_counter() - started)
    refuse_wrong("compile", error, dtype, 1e-3)
    times = interleaved(
        {
            "nti": partial(shipped_iteration, model, begun, x),
            "nti, compiled": partial(shipped_iteration, fast, begun, x),
        },
        repeats,
    )
    times["nti, compiled: the first call"] = [first]
    case = f"{config.unet.channels} channels, {side} px"
    tflop = iteration_tflop(config, side) - begun_tflop(config, side)
    return [
        make_row(
            "compile", name, case, dtype=dtype, milliseconds=each,
            quality=error if name == "nti, compiled" else 0.0,
            unit="of the eager gradient" if name == "nti, compiled" else "",
            tflop=0.0 if name.endswith("first call") else tflop,
        )
        for name, each in times.items()
    ]  # fmt: skip
