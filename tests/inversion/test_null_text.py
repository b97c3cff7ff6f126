import math

import pytest
import torch

from nti import Inversion, StableDiffusion, invert, reconstruct
from nti.image import load_image
from nti.inversion.ddim import ddim_invert
from nti.inversion.null_text import (
    NullTextResult,
    optimize_null_text,
    published_learning_rate,
    published_threshold,
    reference,
)
from nti.inversion.sampling import sample
from nti.sampling.schedule import ddim_step
from tolerances import RELATIVE_OPTIMIZED, assert_close, note_error, relative_error

T, W = 4, 3.0


class Setting:
    """Two images' pivots on the tiny model."""

    def __init__(self, model: StableDiffusion) -> None:
        self.model = model
        self.schedule = model.schedule(T)
        g = torch.Generator().manual_seed(0)
        self.cond = model.encode_text(["a cat", "two dogs"])
        self.null = model.encode_text(["", ""])
        latent = torch.randn(2, 4, 8, 8, generator=g, dtype=torch.float64)
        self.pivot = ddim_invert(model.steps, latent, self.cond, self.schedule)

    def optimize(
        self, rows: slice = slice(None), inner_steps: int = 3, threshold: float = 0.0
    ) -> NullTextResult:
        return optimize_null_text(
            self.model.steps,
            self.pivot[:, rows],
            self.cond[rows],
            self.null[rows],
            self.schedule,
            guidance_scale=W,
            inner_steps=inner_steps,
            threshold=lambda index, steps: threshold,
        )


@pytest.fixture(scope="module")
def setting(model: StableDiffusion) -> Setting:
    return Setting(model)


@pytest.mark.parametrize("stops", [False, True], ids=["never", "early-stop"])
def test_it_is_the_reference_embedding_by_embedding(setting: Setting, stops: bool) -> None:
    """The reference is Algorithm 1 by autograd and torch's Adam."""
    free = setting.optimize(slice(0, 1)).losses
    threshold = float(free.median()) if stops else 0.0
    found = setting.optimize(slice(0, 1), threshold=threshold)
    counts = (~found.losses.isnan()).sum(dim=-1)
    assert (counts.min() < 3) == stops and counts.max() == 3
    expected = reference(
        setting.model.unet,
        setting.pivot[:, :1],
        setting.cond[:1],
        setting.null[:1],
        setting.schedule,
        guidance_scale=W,
        inner_steps=3,
        threshold=lambda index, steps: threshold,
    )
    assert relative_error(expected[-1], setting.null[:1]) > 1e-2, "it has learned something"
    for ours, plain in zip(found.uncond, expected, strict=True):
        # Adam divides by the gradient's own size, so rounding grows where a gradient is near zero.
        error = relative_error(ours, plain)
        note_error(error, ours.dtype)
        assert error < RELATIVE_OPTIMIZED
    again = sample(
        setting.model.steps, setting.pivot[0, :1], setting.cond[:1], expected, setting.schedule, W
    )
    assert relative_error(found.latents, again) < RELATIVE_OPTIMIZED


def test_optimization_comes_closer_to_the_pivot_than_none(setting: Setting) -> None:
    def distance(result: NullTextResult) -> float:
        return float((result.latents - setting.pivot).norm())

    assert distance(setting.optimize(inner_steps=10)) < 0.9 * distance(
        setting.optimize(inner_steps=0)
    )


def test_a_threshold_above_every_loss_stops_after_one_update(setting: Setting) -> None:
    stopped, once = setting.optimize(threshold=math.inf), setting.optimize(inner_steps=1)
    assert torch.equal(stopped.uncond, once.uncond)
    assert stopped.losses[..., 1:].isnan().all() and not stopped.losses[..., 0].isnan().any()


def test_the_loss_before_the_update_decides(setting: Setting) -> None:
    free = setting.optimize()
    first, second = free.losses[0, 0, :2].tolist()
    assert second < first
    # Between the losses before the first and before the second update: two updates, not one.
    between = setting.optimize(slice(0, 1), threshold=(first + second) / 2)
    assert between.losses[0, 0].isnan().tolist() == [False, False, True]


def test_a_batch_equals_its_images_one_by_one_even_if_one_stops_early(setting: Setting) -> None:
    losses = setting.optimize().losses[0]
    threshold = float(losses[:, 0].min() + losses[:, 0].max()) / 2
    both = setting.optimize(threshold=threshold)
    counts = (~both.losses[0].isnan()).sum(dim=1)
    assert counts[0] != counts[1]
    for i in range(2):
        alone = setting.optimize(slice(i, i + 1), threshold=threshold)
        assert relative_error(both.uncond[:, i], alone.uncond[:, 0]) < 1e-6
        assert_close(both.losses[:, i].nan_to_num(), alone.losses[:, 0].nan_to_num())


def test_published_rates_and_thresholds() -> None:
    for i in range(50):
        assert published_learning_rate(i, 50) == pytest.approx(1e-2 * (1 - i / 100))
        assert published_threshold(i, 50) == pytest.approx(1e-5 + i * 2e-5)
    assert all(published_learning_rate(i, 400) > 0 for i in range(400))


def test_the_pivot_predicts_noise_at_the_target_timestep_by_default(
    model: StableDiffusion, setting: Setting
) -> None:
    last = setting.schedule.coefficients(T - 1)
    eps = model.steps.noise(
        setting.pivot[-2], torch.tensor(setting.schedule.timesteps[-2]), setting.cond
    )
    assert_close(
        ddim_step(setting.pivot[-3], eps, setting.schedule.coefficients(T - 2)), setting.pivot[-2]
    )
    paper = ddim_invert(
        model.steps, setting.pivot[-1], setting.cond, setting.schedule, noise_at="current"
    )
    eps = model.steps.noise(paper[-2], torch.tensor(setting.schedule.timesteps[-1]), setting.cond)
    assert_close(ddim_step(paper[-3], eps, setting.schedule.coefficients(T - 2)), paper[-2])
    eps = model.steps.noise(paper[-1], torch.tensor(setting.schedule.timesteps[-1]), setting.cond)
    assert_close(ddim_step(paper[-2], eps, last), paper[-1])
    with pytest.raises(ValueError, match="noise_at: got 'next'"):
        ddim_invert(model.steps, paper[-1], setting.cond, setting.schedule, noise_at="next")


def test_reconstruction_samples_again_and_meets_the_visited_latents(
    model: StableDiffusion, inversion: Inversion
) -> None:
    again = sample(
        model.steps,
        inversion.pivot[:1],
        model.encode_text([inversion.prompt]),
        inversion.uncond[:, None],
        model.schedule(inversion.steps),
        inversion.guidance_scale,
    )
    assert_close(again[:, 0], inversion.latents)
    decoded = model.decode_latent(again[-1])
    shown = load_image(reconstruct(model, inversion), 64)
    assert (shown - decoded).abs().max() <= 1.01 / 255


def test_reconstruction_never_reads_the_stored_latents(
    model: StableDiffusion, inversion: Inversion
) -> None:
    import dataclasses

    spoilt = dataclasses.replace(
        inversion,
        latents=torch.zeros_like(inversion.latents),
        pivot=torch.cat([inversion.pivot[:1], torch.zeros_like(inversion.pivot[1:])]),
    )
    assert reconstruct(model, spoilt).tobytes() == reconstruct(model, inversion).tobytes()


def test_guidance_1_needs_no_optimization(model: StableDiffusion, image: torch.Tensor) -> None:
    """At w = 1 the null embedding has no say, and the pivot is retraced but for DDIM's error."""
    result = invert(model, image, "a cat", steps=5, guidance_scale=1.0, inner_steps=2)
    plain = invert(model, image, "a cat", steps=5, guidance_scale=1.0, method="ddim")
    assert torch.equal(result.uncond, plain.uncond)
    assert torch.equal(result.latents, plain.latents)


def test_negative_prompt_inversion_samples_as_at_guidance_1(
    model: StableDiffusion, image: torch.Tensor
) -> None:
    negative = invert(model, image, "a cat", steps=5, guidance_scale=6.0, method="negative-prompt")
    assert negative.losses.shape == (5, 0)
    assert_close(negative.uncond, model.encode_text(["a cat"]).expand(5, -1, -1))
    plain = invert(model, image, "a cat", steps=5, guidance_scale=1.0, method="ddim")
    assert_close(negative.latents, plain.latents)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "magic"}, "method: got 'magic', expected one of null-text"),
        ({"inner_steps": 0}, "inner_steps: got 0, expected 1 to 10000; for none at all"),
        ({"steps": 1000}, "steps: got 1000, expected 1 to 999"),
        ({"steps": 0}, "steps: got 0, expected 1 to 10000"),
        ({"learning_rate": 0.01}, "learning_rate: got 0.01, expected a function of"),
        ({"threshold": None}, "threshold: got None, expected a function of"),
        ({"guidance_scale": float("nan")}, "guidance_scale: got nan"),
    ],
)
def test_numbers_that_cannot_be_are_refused(
    model: StableDiffusion, image: torch.Tensor, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        invert(model, image, "a cat", **settings)
