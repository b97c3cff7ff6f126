"""Section `step`: one inner iteration of null-text optimization, as a ladder from the published
loop.

`published` leaves the weights trainable; `frozen` is the same loop with that one line repaired;
`nti contiguous` and `nti every time` are this project without the channels-last layout and without
computing once what does not depend on the embedding; `nti` is what ships.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from cases import StepInputs, random_model, step_inputs
from nti.config import ModelConfig
from nti.model import StableDiffusion
from nti.networks.unet import Begun
from nti.sampling.step import AdamState, null_text_iteration
from peers import PublishedLoop, diffusers_unet
from rows import Row, make_row
from timing import child_peak_mib, interleaved, own_peak_mib

__all__ = ["PEAKS", "peak", "step"]

W = 7.5
PEAKS = ("published", "frozen", "nti", "nti, low memory")
"""The providers whose memory is measured, each in a process of its own."""


def ours(model: StableDiffusion, x: StepInputs, *, hoist: bool) -> Tensor:
    """Return the embedding after an iteration; `hoist`: on a latent that was begun before."""
    begun = model.begin(x.latent, x.timestep) if hoist else None

    def predict(embedding: Tensor) -> Tensor:
        if begun is None:
            return model.predict_noise(x.latent, x.timestep, embedding)
        return model.finish(begun, embedding)

    return _iterate(predict, x)


def _recomputing(model: StableDiffusion, begun: Begun, x: StepInputs) -> Tensor:
    model.unet.recompute = True
    uncond = _iterate(partial(model.finish, begun), x)
    model.unet.recompute = False
    return uncond


def _iterate(predict: Callable[[Tensor], Tensor], x: StepInputs) -> Tensor:
    active = torch.ones(1, dtype=torch.bool, device=x.latent.device)
    uncond, _, loss = null_text_iteration(
        predict, x.uncond, AdamState.fresh(x.uncond), x.latent, x.eps_cond, x.target, x.step, W,
        1e-2, active,
    )  # fmt: skip
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
        "nti contiguous": partial(ours, contiguous, x, hoist=False),
        "nti every time": partial(ours, model, x, hoist=False),
        # What is begun once a timestep serves ten iterations.
        "nti": partial(_iterate, partial(model.finish, begun), x),
        "nti, low memory": partial(_recomputing, model, begun, x),
    }
    expected = calls["frozen"]()
    change = (expected - x.uncond).norm()
    times = interleaved(calls, repeats)
    rows = []
    for name, call in calls.items():
        error = float((call() - expected).norm() / change)
        if error > 1e-2 and dtype == torch.float32:
            raise RuntimeError(f"{name}: its step differs by {error:.1e} of the frozen loop's")
        arguments = [
            "--peak",
            name,
            "--side",
            str(side),
            *(["--quick"] * (config.unet.channels < 320)),
        ]
        memory = child_peak_mib(arguments) if name in PEAKS else 0.0
        rows.append(
            make_row(
                "step", name, f"{config.unet.channels} channels, {side} px", dtype=dtype,
                milliseconds=times[name], peak_mib=memory, quality=error,
                unit="of the frozen loop's step",
            )
        )  # fmt: skip
    return rows


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
            _iterate(partial(model.finish, begun), x)
    else:
        model.unet.to(memory_format=torch.contiguous_format)
        x = step_inputs(model, side)
        loop = PublishedLoop(diffusers_unet(model), W, frozen=provider == "frozen")
        for _ in range(2):
            theirs(loop, x)
    return own_peak_mib()
