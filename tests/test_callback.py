"""A callback hears of every step, and may stop the run."""

from collections.abc import Callable

import pytest
import torch

import nti
from nti import Inversion, StableDiffusion, Stopped

TIGER = "a tiger sitting next to a mirror"
Callback = Callable[[int, int], object]

RUNS: dict[str, tuple[Callable[..., object], int]] = {
    "invert": (
        lambda m, x, _, c: nti.invert(m, x, "a", steps=3, inner_steps=1, callback=c), 6
    ),
    "reconstruct": (lambda m, _, i, c: nti.reconstruct(m, i, callback=c), 10),
    "edit": (lambda m, _, i, c: nti.edit(m, i, TIGER, start=4, callback=c), 6),
    "generate": (lambda m, _, __, c: nti.generate(m, "a cat", steps=3, callback=c), 3),
    "attention": (lambda m, _, i, c: nti.average_attention(m, i, callback=c), 10),
    "sdedit": (lambda m, _, i, c: nti.sdedit(m, i, TIGER, strength=0.4, callback=c), 4),
    "masked": (
        lambda m, _, i, c: nti.masked(m, i, TIGER, mask="cat", mask_threshold=0.9, callback=c), 17
    ),
    "diffedit": (lambda m, _, i, c: nti.diffedit(m, i, TIGER, noises=2, callback=c), 10),
    "masactrl": (lambda m, _, i, c: nti.masactrl(m, i, TIGER, callback=c), 10),
    "sweep": (
        lambda m, _, i, c: nti.sweep(
            m, i, TIGER, over="guidance_scale", values=[2.0, 4.0], callback=c
        ), 20,
    ),
}  # fmt: skip
RUN = pytest.mark.parametrize("name", RUNS)


@RUN
def test_every_step_is_reported(
    model: StableDiffusion, image: torch.Tensor, inversion: Inversion, name: str
) -> None:
    run, total = RUNS[name]
    heard: list[tuple[int, int]] = []
    run(model, image, inversion, lambda done, of: heard.append((done, of)))
    assert heard == [(i + 1, total) for i in range(total)]


@RUN
def test_true_stops_the_run(
    model: StableDiffusion, image: torch.Tensor, inversion: Inversion, name: str
) -> None:
    run, total = RUNS[name]
    heard: list[int] = []

    def stop(done: int, of: int) -> bool:
        heard.append(done)
        return done == 2

    with pytest.raises(Stopped, match=f"after step 2 of {total}") as stopped:
        run(model, image, inversion, stop)
    assert heard == [1, 2] and (stopped.value.done, stopped.value.total) == (2, total)
