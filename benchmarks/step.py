"""Section `step`: one inner iteration of null-text optimization, as a ladder from the published
loop.

`published` leaves the weights trainable; `frozen` is the same loop with that one line repaired;
`nti contiguous` and `nti every time` are this project without the channels-last layout and without
computing once what does not depend on the embedding; `nti` is what ships. On CUDA its step is also
recorded as a graph, and section `compile` times it compiled.
"""

import copy
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cases import StepInputs, random_model, step_inputs
from nti.compilation import compile_model
from nti.config import ModelConfig
from nti.model import StableDiffusion
from nti.networks.unet import Begun
from nti.sampling.step import AdamState, null_text_iteration
from peers import PublishedLoop, diffusers_unet
from rows import Row, make_row
from timing import child_peak_mib, interleaved, own_peak_mib

__all__ = ["PEAKS", "compiled", "peak", "step"]

W = 7.5
PEAKS = ("published", "frozen", "nti", "nti, low memory")
"""The providers whose memory is measured, each in a process of its own."""


def _shipped(model: StableDiffusion, begun: Begun, x: StepInputs) -> Tensor:
    """Return the embedding after an iteration on a latent that was begun before."""
    return _read(model.null_text_iteration(begun, *_arguments(x)))


def _every_time(model: StableDiffusion, x: StepInputs) -> Tensor:
    predict = partial(model.predict_noise, x.latent, x.timestep)
    return _read(null_text_iteration(predict, *_arguments(x)))


def _recomputing(model: StableDiffusion, begun: Begun, x: StepInputs) -> Tensor:
    model.unet.recompute = True
    uncond = _shipped(model, begun, x)
    model.unet.recompute = False
    return uncond


def _arguments(x: StepInputs) -> tuple[Any, ...]:
    active = torch.ones(1, dtype=torch.bool, device=x.latent.device)
    adam = AdamState.fresh(x.uncond)
    return x.uncond, adam, x.latent, x.eps_cond, x.target, x.step, W, 1e-2, active


def _read(result: tuple[Tensor, AdamState, Tensor]) -> Tensor:
    uncond, _, loss = result
    loss.tolist()  # the early stop's read
    return uncond


def theirs(loop: PublishedLoop, x: StepInputs) -> Tensor:
    """Return the embedding after an iteration of the published loop."""
    return loop.iterate(x.uncond, x.latent, x.timestep, x.eps_cond, x.target, x.step)


def step(
    config: ModelConfig, side: int, repeats: int, dtype: torch.dtype, device: torch.device
) -> list[Row]:
    """Time the ladder on an image of `side` pixels."""
    model = random_model(config, dtype, device)
    unet = diffusers_unet(model)
    contiguous = random_model(config, dtype, device)
    contiguous.unet.load_state_dict(
        {k: v.contiguous() for k, v in model.unet.state_dict().items()}, assign=True
    )
    x = step_inputs(model, side)
    begun = model.begin(x.latent, x.timestep)
    calls: dict[str, Callable[[], Tensor]] = {
        "published": partial(theirs, PublishedLoop(unet, W, frozen=False), x),
        "frozen": partial(theirs, PublishedLoop(unet, W, frozen=True), x),
        "nti contiguous": partial(_every_time, contiguous, x),
        "nti every time": partial(_every_time, model, x),
        # What is begun once a timestep serves ten iterations.
        "nti": partial(_shipped, model, begun, x),
        "nti, low memory": partial(_recomputing, model, begun, x),
    }
    if device.type == "cuda":
        recorded = compile_model(model, backend="cuda-graph")
        calls["nti, CUDA graph"] = partial(_shipped, recorded, begun, x)
    exact = unet if dtype == torch.float32 else copy.deepcopy(unet).float()
    expected = theirs(PublishedLoop(exact, W, frozen=True), x)
    change = (expected - x.uncond).norm()
    times = interleaved(calls, repeats)
    rows = []
    for name, call in calls.items():
        error = float((call() - expected).norm() / change)
        if error > 1e-2 and dtype == torch.float32:
            raise RuntimeError(f"{name}: its step differs by {error:.1e} of the frozen loop's")
        dtype_name = str(dtype).removeprefix("torch.")
        arguments = ["--peak", name, "--side", str(side), "--dtype", dtype_name]
        arguments += ["--quick"] * (config.unet.channels < 320)
        memory = child_peak_mib(arguments) if name in PEAKS else 0.0
        rows.append(
            make_row(
                "step", name, f"{config.unet.channels} channels, {side} px", dtype=dtype,
                milliseconds=times[name], peak_mib=memory, quality=error,
                unit="from the frozen loop's step in float32",
            )
        )  # fmt: skip
    return rows


def compiled(
    config: ModelConfig, side: int, repeats: int, dtype: torch.dtype, device: torch.device
) -> list[Row]:
    """Time the compiled inner iteration against the eager one; its first call has its own row."""
    model = random_model(config, dtype, device)
    x = step_inputs(model, side)
    begun = model.begin(x.latent, x.timestep)
    fast = compile_model(model)
    expected = _shipped(model, begun, x)
    started = time.perf_counter()
    error = float((_shipped(fast, begun, x) - expected).norm() / (expected - x.uncond).norm())
    first = 1e3 * (time.perf_counter() - started)
    times = interleaved(
        {
            "nti": partial(_shipped, model, begun, x),
            "nti, compiled": partial(_shipped, fast, begun, x),
        },
        repeats,
    )
    times["nti, compiled: the first call"] = [first]
    case = f"{config.unet.channels} channels, {side} px"
    return [
        make_row(
            "compile", name, case, dtype=dtype, milliseconds=each,
            quality=error if name == "nti, compiled" else 0.0,
            unit="of the eager step" if name == "nti, compiled" else "",
        )
        for name, each in times.items()
    ]  # fmt: skip


def peak(
    provider: str, config: ModelConfig, side: int, dtype: torch.dtype, device: torch.device
) -> float:
    """Run two iterations of one provider in this process and return its peak memory in MiB."""
    model = random_model(config, dtype, device)
    if provider.startswith("nti"):
        model.unet.recompute = "low" in provider
        x = step_inputs(model, side)
        begun = model.begin(x.latent, x.timestep)
        for _ in range(2):
            _shipped(model, begun, x)
    else:
        model.unet.to(memory_format=torch.contiguous_format)
        x = step_inputs(model, side)
        loop = PublishedLoop(diffusers_unet(model), W, frozen=provider == "frozen")
        for _ in range(2):
            theirs(loop, x)
    return own_peak_mib()
