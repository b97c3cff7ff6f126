"""Section `step`: one inner iteration of null-text optimization, as a ladder from the published
loop.

`published` leaves the weights trainable; `frozen` is the same loop with that one line repaired.
`nti` is what ships on a CPU, and on CUDA `nti, CUDA graph`, the same captured. As in an inversion,
what comes before the prompt was computed once for the timestep; `nti, from the latent` computes it,
too. Two rows are `nti` without one thing: `nti contiguous` without the channels-last layout (and
convolutions as products, which need it), `nti, reference` with every layer by PyTorch. On CUDA the
eager and the captured step are timed without the Triton kernels of norms and gates, too (`nti
contiguous` never has them, as they would undo it); section `compile` times it compiled.
"""

import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial

import torch
from nti.kernels.backend import without_fusion
from torch import Tensor

from cases import begun, moment_after, random_model, refuse_wrong, step_inputs
from nti.config import SD_V1, ModelConfig
from nti.execution.compiled import compiled_steps
from nti.execution.cuda_graph import captured_steps
from nti.execution.eager import eager_steps
from nti.networks.unet import UNet
from peers import PublishedLoop, diffusers_unet
from roofline import iteration_tflop
from rows import Row, make_row
from timing import child_peak_mib, interleaved

__all__ = ["PEAKS", "compiled", "step"]

PEAKS = ("published", "frozen", "nti", "nti, low memory")
"""Whose memory is measured, each in a process of its own; on CUDA also the captured step's."""


def _recomputing(unet: UNet) -> UNet:
    """Return the same network on the same weights, which runs its blocks again."""
    with torch.device("meta"):
        other = UNet(unet.config, backend=unet.backend, recompute=True)
    other.load_state_dict(unet.state_dict(), assign=True)
    return other.requires_grad_(False).eval()


def _contiguous(unet: UNet) -> UNet:
    other = unet.with_backend(
        unet.backend if unet.backend == "onednn" else without_fusion(unet.backend)
    )
    state = {name: value.contiguous() for name, value in unet.state_dict().items()}
    other.load_state_dict(state, assign=True)
    return other.requires_grad_(False)


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
    x = step_inputs(config, side, device, model.steps.noise)
    plain = model.unet.with_backend("reference")
    networks = {
        "nti contiguous": _contiguous(model.unet),
        "nti": model.unet,
        "nti, low memory": _recomputing(model.unet),
    }
    if model.unet.backend != "reference":
        networks["nti, reference"] = plain
    steps = {name: eager_steps(each) for name, each in networks.items()}
    if device.type == "cuda":
        steps["nti, CUDA graph"] = captured_steps(model.steps)
        fused = model.unet.with_backend(without_fusion(model.unet.backend))
        steps["nti, PyTorch's norms"] = eager_steps(fused)
        steps["nti, CUDA graph, PyTorch's norms"] = captured_steps(eager_steps(fused))
        # Captured with other numbers than those that are checked.
        other = step_inputs(config, side, device, model.steps.noise, seed=1)
        for each in steps.values():
            moment_after(each, begun(each, other))
    calls: dict[str, Callable[[], Tensor]] = {
        "published": partial(PublishedLoop(unet, frozen=False).iterate, x),
        "frozen": partial(PublishedLoop(unet, frozen=True).iterate, x),
    }
    calls |= {name: partial(moment_after, each, begun(each, x)) for name, each in steps.items()}
    calls["nti, from the latent"] = partial(moment_after, steps["nti"], x)
    exact = unet if dtype == torch.float32 else deepcopy(unet).float()
    expected = PublishedLoop(exact, frozen=True).iterate(x)
    times = interleaved(calls, repeats)
    tflop = iteration_tflop(config, side)
    rows = []
    for name, call in calls.items():
        error = float((call() - expected).norm() / expected.norm())
        if name.startswith("nti") or dtype == torch.float32:  # half precision may lose a peer's
            refuse_wrong(f"step, {name}", error, dtype, 1e-3)
        imports, memory = peaks.get(name, (0.0, 0.0))
        rows.append(
            make_row(
                "step", name, f"{config.unet.channels} channels, {side} px", dtype=dtype,
                milliseconds=times[name], peak_mib=memory, imports_mib=imports, quality=error,
                unit="from the frozen loop's gradient in float32", tflop=tflop,
            )
        )  # fmt: skip
    return rows


def compiled(
    config: ModelConfig, side: int, repeats: int, dtype: torch.dtype, device: torch.device
) -> list[Row]:
    """Time the compiled inner iteration against the eager one; its first call has its own row."""
    model = random_model(config, dtype, device)
    x = step_inputs(config, side, device, model.steps.noise)
    fast = compiled_steps(model.steps)
    expected = moment_after(model.steps, x)
    started = time.perf_counter()
    error = float((moment_after(fast, x) - expected).norm() / expected.norm())
    first = 1e3 * (time.perf_counter() - started)
    refuse_wrong("compile", error, dtype, 1e-3)
    times = interleaved(
        {
            "nti": partial(moment_after, model.steps, x),
            "nti, compiled": partial(moment_after, fast, x),
        },
        repeats,
    )
    times["nti, compiled: the first call"] = [first]
    case = f"{config.unet.channels} channels, {side} px"
    tflop = iteration_tflop(config, side)
    return [
        make_row(
            "compile", name, case, dtype=dtype, milliseconds=each,
            quality=error if name == "nti, compiled" else 0.0,
            unit="of the eager gradient" if name == "nti, compiled" else "",
            tflop=0.0 if name.endswith("first call") else tflop,
        )
        for name, each in times.items()
    ]  # fmt: skip
