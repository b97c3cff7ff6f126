"""The steps of `null-text-fast`."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import nti
from nti import InversionSettings, StableDiffusion
from nti.inversion.line_search import search_null_text
from nti.inversion.methods import is_searched
from nti.inversion.negative_prompt import negative_prompt_embedding
from nti.inversion.null_text import NullTextState
from nti.sampling.step import IterationInputs, null_text_iteration
from plain_loop import PROMPT, Loop, Made, T, W
from tolerances import assert_close


def test_the_search_lowers_the_loss(model: StableDiffusion, made: Made) -> None:
    inversion = made("null-text-fast")
    loop = Loop(model, inversion)
    before = negative_prompt_embedding(loop.cond, loop.null, 1.5 / inversion.guidance_scale)
    for i in range(T):
        z = inversion.latents[i][None]
        losses = [
            F.mse_loss(loop.step(z, i, u, loop.cond), loop.pivot[i + 1])
            for u in (before, inversion.uncond[i][None])
        ]
        assert losses[1] <= losses[0]
        assert losses[0].item() == pytest.approx(inversion.losses[i, 0].item())
        before = inversion.uncond[i][None]
    assert inversion.iterations == [1, 1, 1, 1]
    assert not torch.equal(inversion.uncond[0], inversion.uncond[-1])


def test_the_search_starts_on_the_way_to_the_prompt(made: Made) -> None:
    """As `negative-prompt` goes; at w = 1 nothing is to be found, so the start is what is kept."""
    for given, far in (({}, 1.0), ({"towards_null": 0.25}, 0.25), ({"towards_null": 1.0}, 1.0)):
        found = made("null-text-fast", guidance_scale=1.0, **given)
        expected = made("negative-prompt", guidance_scale=1.0, towards_null=far)
        assert torch.equal(found.uncond[-1], expected.uncond[0])
        assert found.made is not None and found.made.settings["towards_null"] == far


@pytest.mark.parametrize(
    ("w", "far"), [(3.0, 0.5), (7.5, 0.2), (1.5, 1.0), (1.0, 1.0), (-2.0, 1.0)]
)
def test_the_more_guidance_the_nearer_to_the_prompt_it_starts(w: float, far: float) -> None:
    assert InversionSettings(method="null-text-fast").start(w) == pytest.approx(far)
    assert InversionSettings(method="null-text-fast", towards_null=0.3).start(w) == 0.3
    assert InversionSettings(method="negative-prompt").start(w) == 0


def test_the_search_finds_a_parabolas_minimum(model: StableDiffusion) -> None:
    """Where the noise is linear in the embedding, the step after the first is as long as it should
    be.
    """
    steps = dataclasses.replace(
        model.steps,
        noise=lambda z, t, context: context.mean(dim=(1, 2))[:, None, None, None].expand_as(z),
        null_text_iteration=lambda x: null_text_iteration(
            lambda z, t, c: c.mean(dim=(1, 2))[:, None, None, None].expand_as(z), x
        ),
    )
    schedule = model.schedule(T)
    uncond, cond = model.encode_text([""]), model.encode_text([PROMPT])
    pivot = torch.ones(T + 1, 1, 4, 8, 8, dtype=torch.float64).cumsum(dim=0)
    told: list[NullTextState] = []
    search_null_text(steps, pivot, cond, uncond, schedule, guidance_scale=W, watch=told.append)
    x = IterationInputs.first(
        uncond, pivot[0], schedule, 0, eps_cond=steps.noise(pivot[0], None, cond), target=pivot[1],
        guidance_scale=W, learning_rate=0.0,
    )  # fmt: skip
    gradient = steps.null_text_iteration(x).adam.mean * 10
    length = told[0].length
    assert length is not None
    at = x.uncond - length * gradient / gradient.norm()
    left = steps.null_text_iteration(dataclasses.replace(x, uncond=at)).losses
    assert left < 1e-20 * steps.null_text_iteration(x).losses


def test_a_step_that_does_not_help_is_not_made(model: StableDiffusion) -> None:
    uncond, cond = model.encode_text([""]), model.encode_text([PROMPT])
    steps, schedule = model.steps, model.schedule(T)

    def worse(z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        known = torch.equal(context, uncond) or torch.equal(context, cond)
        return steps.noise(z, t, context) * (1.0 if known else 100.0)

    spoiled = dataclasses.replace(steps, noise=worse)
    pivot = torch.ones(T + 1, 1, 4, 8, 8, dtype=torch.float64).cumsum(dim=0)
    told: list[NullTextState] = []
    found = search_null_text(
        spoiled, pivot, cond, uncond, schedule, guidance_scale=W, watch=told.append,
        searched=lambda i, steps: i % 2 == 0,
    )  # fmt: skip
    assert torch.equal(found.uncond, uncond.expand_as(found.uncond))
    again = nti.sample(steps, pivot[0], cond, found.uncond, schedule, W)
    assert_close(found.latents, again)
    lengths = [state.length for state in told]
    assert lengths[0] is not None and lengths[1] is lengths[0]  # none was searched for
    assert found.losses.isnan().flatten().tolist() == [False, True, False, True]


def test_the_search_stays_where_guidance_has_no_say(model: StableDiffusion) -> None:
    """At w = 1 the null embedding changes nothing, so its gradient is zero."""
    uncond, cond = model.encode_text([""]), model.encode_text([PROMPT])
    pivot = torch.ones(T + 1, 1, 4, 8, 8, dtype=torch.float64).cumsum(dim=0)
    told: list[NullTextState] = []
    found = search_null_text(
        model.steps, pivot, cond, uncond, model.schedule(T), guidance_scale=1.0, watch=told.append
    )
    assert torch.equal(found.uncond, uncond.expand_as(found.uncond))
    assert all(state.length is not None and state.length.isfinite().all() for state in told)


def test_the_search_is_spread_over_the_timesteps() -> None:
    found = [i for i in range(50) if is_searched(i, 50)]
    assert found == [0, 8, 16, 24, *range(27, 50)]
