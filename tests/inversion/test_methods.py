"""Each inversion method by what tells it from its neighbours, on the tiny model."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import nti
from nti import Inversion, InversionSettings, StableDiffusion, invert, invert_batch
from nti.inversion.line_search import search_null_text
from nti.inversion.methods import METHODS, Method, is_searched, passes
from nti.inversion.noised import draw
from nti.inversion.null_text import NullTextState, published_learning_rate
from nti.sampling.schedule import ddim_step, noised
from nti.sampling.step import IterationInputs, guided_noise, noise, null_text_iteration
from passes import counting
from tolerances import RELATIVE_OPTIMIZED, assert_close, relative_error

T, N, W = 4, 3, 3.0
PROMPT = "a cat sitting next to a mirror"

Made = Callable[..., Inversion]


@pytest.fixture(scope="module")
def made(model: StableDiffusion, image: Tensor) -> Made:
    """Invert by a method, once for all tests that ask for the same."""
    found: dict[str, Inversion] = {}

    def of(method: str, **settings: object) -> Inversion:
        key = f"{method} {settings}"
        if key not in found:
            given = {"steps": T, "guidance_scale": W, "inner_steps": N, **settings}
            found[key] = invert(model, image, PROMPT, method=method, **given)
        return found[key]

    return of


@pytest.mark.parametrize("name", METHODS)
def test_it_is_saved_loaded_and_sampled_again(
    model: StableDiffusion, made: Made, name: str, tmp_path: Path
) -> None:
    inversion = made(name)
    inversion.save(tmp_path / "x")
    assert Inversion.load(tmp_path / "x") == inversion
    again = nti.reconstruct_latents(model, inversion)
    assert_close(again[:, 0], inversion.latents)
    assert nti.reconstruct(model, inversion).size == (64, 64)


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_is_what_inverting_one_by_one_gives(model: StableDiffusion, name: str) -> None:
    g = torch.Generator().manual_seed(3)
    images = [torch.rand(1, 3, 64, 64, generator=g).double() * 2 - 1 for _ in range(2)]
    prompts = ["a cat", "two dogs"]
    settings = InversionSettings(steps=2, guidance_scale=W, inner_steps=2, method=name)
    together = invert_batch(model, images, prompts, settings)
    for found, image, prompt in zip(together, images, prompts, strict=True):
        (alone,) = invert_batch(model, [image], [prompt], settings)
        for field in ("pivot", "latents", "uncond", "cond", "offsets"):
            ours, theirs = getattr(found, field), getattr(alone, field)
            assert (ours is None) == (theirs is None)
            if ours is not None and theirs.any():
                error = relative_error(ours, theirs)
                assert error < RELATIVE_OPTIMIZED, f"{field}: {error:.2e}"


@pytest.mark.parametrize("name", [n for n, row in METHODS.items() if row.sampled])
def test_an_image_that_overflows_does_not_take_the_others_along(
    model: StableDiffusion, image: Tensor, name: str
) -> None:
    prompts = ["a cat", "two dogs"]
    bad = model.encode_text(prompts)[1]  # alone it would be rounded differently

    def broken(context: Tensor) -> Tensor:
        """NaN for rows of the bad prompt, 1 elsewhere."""
        rows = (context == bad).flatten(1).all(dim=1)
        return torch.where(rows, torch.nan, 1.0)[:, None, None, None]

    steps = model.steps

    def damaged_noise(latent: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        return steps.noise(latent, timestep, context) * broken(context)

    def damaged_step(z: Tensor, t: Tensor, uncond: Tensor, cond: Tensor, *rest: Any) -> Tensor:
        return steps.guided_step(z, t, uncond, cond, *rest) * broken(cond)

    damaged = dataclasses.replace(steps, noise=damaged_noise, guided_step=damaged_step)
    parts = (model.config, model.unet, model.vae, model.text, model.tokenizer)
    settings = InversionSettings(steps=2, guidance_scale=W, inner_steps=1, method=name)
    with pytest.raises(nti.BatchError) as error:
        invert_batch(StableDiffusion(*parts, damaged), [image, image], prompts, settings)
    assert error.value.results[0] is not None and error.value.results[1] is None


@pytest.mark.parametrize("name", METHODS)
def test_the_callback_hears_the_end(model: StableDiffusion, image: Tensor, name: str) -> None:
    told: list[tuple[int, int]] = []
    invert(
        model, image, PROMPT, method=name, steps=2, inner_steps=1, guidance_scale=W,
        callback=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert told[-1] == (4, 4) and told == sorted(told)


@pytest.mark.parametrize("name", METHODS)
def test_it_costs_what_the_table_says(model: StableDiffusion, image: Tensor, name: str) -> None:
    counted, count = counting(model)
    invert(
        counted, image, PROMPT, method=name, steps=T, guidance_scale=W, inner_steps=N,
        threshold=lambda index, steps: 0.0,
    )  # fmt: skip
    forward, backward = passes(METHODS[name], T, N)
    assert count.backward == backward
    if METHODS[name].by == "line-search":  # a step that is not made costs one more
        assert forward - backward <= count.forward <= forward
    else:
        assert count.forward == forward


@pytest.mark.filterwarnings("ignore:edit.*its prompt is the source's")
@pytest.mark.parametrize("name", [n for n, row in METHODS.items() if row.sampled])
def test_it_is_edited(model: StableDiffusion, made: Made, name: str) -> None:
    """With the source's prompt and all its attention, an edit is the source."""
    inversion = made(name)
    result = nti.edit(model, inversion, "a dog sitting next to a mirror")
    assert relative_error(result.latents[-1], inversion.latents[-1:]) > 1e-3
    row = inversion.row
    if row.edits_start == "own" and not row.replayed and row.keeps != "offsets":
        same = nti.edit(model, inversion, PROMPT, cross_replace=1.0, self_replace=1.0,
                        mix=None if inversion.cond is None else 0.0)  # fmt: skip
        assert_close(same.latents[:, 0], inversion.latents)


@pytest.mark.parametrize(
    ("name", "pivot"),
    [
        ("null-text-fast", "ddim"),
        ("textual-inversion-pivot", "ddim"),
        ("null-text-global", "ddim"),
        ("ddim", "anderson"),
    ],
)
def test_a_run_that_was_ended_goes_on(
    model: StableDiffusion, image: Tensor, made: Made, name: str, pivot: str, tmp_path: Path
) -> None:
    """Where it was, or at its pivot at least, and to the same bits."""
    settings = {
        "method": name, "pivot": pivot, "steps": T, "guidance_scale": W, "inner_steps": N,
    }  # fmt: skip
    counted, count = counting(model)
    path = tmp_path / "state"
    with pytest.raises(nti.Stopped):
        invert(
            counted, image, PROMPT, callback=lambda done, total: done == total // 2 + 1,
            state=nti.StateFile(path, every=0.0), **settings,
        )  # fmt: skip
    before = count.forward
    found = invert(counted, image, PROMPT, state=nti.StateFile(path), **settings)
    assert found == made(name, **({} if pivot == "ddim" else {"pivot": pivot}))
    whole, _ = passes(METHODS[name], T, N)
    saved = T + 2 * METHODS[name].watched  # one timestep after the pivot, its two passes at least
    if pivot == "ddim":
        assert count.forward - before <= whole - saved


class Loop:
    """The parts of a plain loop that differentiates by autograd."""

    def __init__(self, model: StableDiffusion, inversion: Inversion) -> None:
        self.unet, self.schedule = model.unet, model.schedule(T)
        self.cond, self.null = model.encode_text([PROMPT]), model.encode_text([""])
        self.pivot = inversion.pivot[:, None]

    def eps(self, latent: Tensor, i: int, context: Tensor) -> Tensor:
        return noise(self.unet, latent, self.schedule.timestep(i, latent), context)

    def step(self, latent: Tensor, i: int, uncond: Tensor, cond: Tensor) -> Tensor:
        eps = guided_noise(self.eps(latent, i, uncond), self.eps(latent, i, cond), W)
        return ddim_step(latent, eps, self.schedule.coefficients(i))


def test_global_null_text_is_algorithm_2(model: StableDiffusion, made: Made) -> None:
    inversion = made("null-text-global")
    loop = Loop(model, inversion)
    null = loop.null.clone().requires_grad_()
    adam = torch.optim.Adam([null])
    for _ in range(N):
        z = loop.pivot[0]
        for i in range(T):
            adam.param_groups[0]["lr"] = published_learning_rate(i, T)
            loss = F.mse_loss(loop.step(z, i, null, loop.cond), loop.pivot[i + 1])
            adam.zero_grad()
            loss.backward()
            adam.step()
            z = loop.step(z, i, null, loop.cond).detach()
    for uncond in inversion.uncond:
        assert relative_error(uncond, null[0].detach()) < RELATIVE_OPTIMIZED
    assert relative_error(null.detach(), loop.null) > 1e-3


@pytest.mark.parametrize("name", ["textual-inversion-pivot", "prompt-tuning"])
def test_a_learned_prompt_follows_the_pivot(model: StableDiffusion, made: Made, name: str) -> None:
    inversion = made(name)
    loop = Loop(model, inversion)
    z, cond = loop.pivot[0], loop.cond
    for i in range(T):
        cond = cond.detach().clone().requires_grad_()
        adam = torch.optim.Adam([cond], lr=published_learning_rate(i, T))
        for _ in range(int(inversion.iterations[i])):
            loss = F.mse_loss(loop.step(z, i, loop.null, cond), loop.pivot[i + 1])
            adam.zero_grad()
            loss.backward()
            adam.step()
        z = loop.step(z, i, loop.null, cond).detach()
        assert inversion.cond is not None
        assert relative_error(inversion.cond[i], cond[0].detach()) < RELATIVE_OPTIMIZED
    assert torch.equal(inversion.uncond, loop.null.expand(T, -1, -1))
    plain = made("ddim").latents[-1]
    target = inversion.pivot[-1]
    assert (inversion.latents[-1] - target).norm() < (plain - target).norm()


def test_textual_inversion_predicts_fresh_noise(model: StableDiffusion, made: Made) -> None:
    inversion = made("textual-inversion")
    loop = Loop(model, inversion)
    generator = torch.Generator().manual_seed(0)
    cond = loop.cond.clone().requires_grad_()
    adam = torch.optim.Adam([cond], lr=published_learning_rate(0, T))
    z0 = loop.pivot[-1]
    for i in torch.randint(T, (T * N,), generator=generator).tolist():
        eps = draw(generator, 1, z0)[0]
        at = noised(z0, eps, loop.schedule.alpha_bar[i])
        loss = F.mse_loss(loop.eps(at, i, cond), eps)
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert inversion.cond is not None
    for found in inversion.cond:
        assert relative_error(found, cond[0].detach()) < RELATIVE_OPTIMIZED
    assert torch.equal(inversion.uncond, loop.null.expand(T, -1, -1))


def test_null_text_without_a_pivot_predicts_fresh_noise(model: StableDiffusion, made: Made) -> None:
    inversion = made("null-text-no-pivot")
    loop = Loop(model, inversion)
    generator = torch.Generator().manual_seed(0)
    null, z0 = loop.null, loop.pivot[-1]
    for i in range(T):
        null = null.detach().clone().requires_grad_()
        adam = torch.optim.Adam([null], lr=published_learning_rate(i, T))
        for _ in range(N):
            eps = draw(generator, 1, z0)[0]
            at = noised(z0, eps, loop.schedule.alpha_bar[i])
            found = guided_noise(loop.eps(at, i, null), loop.eps(at, i, loop.cond), W)
            adam.zero_grad()
            F.mse_loss(found, eps).backward()
            adam.step()
        assert relative_error(inversion.uncond[i], null[0].detach()) < RELATIVE_OPTIMIZED


def test_a_random_pivot_has_one_noise(model: StableDiffusion, made: Made) -> None:
    inversion = made("null-text-random-pivot")
    z0, schedule = inversion.pivot[-1], model.schedule(T)
    noises = [
        (z - a.sqrt() * z0) / (1 - a).sqrt()
        for z, a in zip(inversion.pivot[:-1], schedule.alpha_bar, strict=True)
    ]
    for eps in noises:
        assert_close(eps, noises[0])
    assert noises[0].std() == pytest.approx(1.0, abs=0.1)
    other = made("null-text-random-pivot", seed=1)
    assert relative_error(other.pivot[0], inversion.pivot[0]) > 0.5


def test_negative_prompt_does_not_depend_on_guidance(made: Made) -> None:
    found = [made("negative-prompt", guidance_scale=w) for w in (1.0, 7.5)]
    assert_close(found[0].latents, found[1].latents)
    assert_close(found[0].latents, made("ddim", guidance_scale=1.0).latents)


def test_negative_prompt_goes_to_ddim(model: StableDiffusion, made: Made) -> None:
    assert_close(made("negative-prompt", towards_null=1.0).latents, made("ddim").latents)
    half = made("negative-prompt", towards_null=0.5).uncond[0]
    prompt, null = (made(name).uncond[0] for name in ("negative-prompt", "ddim"))
    cosine = torch.cosine_similarity(prompt, null, dim=-1)[:, None]
    assert_close(half * (2 + 2 * cosine).sqrt(), prompt + null)
    assert cosine.min() < 0.9


def test_direct_keeps_the_pivot(model: StableDiffusion, made: Made) -> None:
    inversion = made("direct")
    assert torch.equal(inversion.latents, inversion.pivot)
    free = nti.edit(model, inversion, "a dog", cross_replace=0.0, self_replace=0.0)
    plain = nti.edit(model, made("ddim"), "a dog", cross_replace=0.0, self_replace=0.0)
    assert torch.equal(free.latents, plain.latents)  # the edit is not led back
    computed = nti.edit(model, inversion, "a dog sitting next to a mirror", replay=False)
    replayed = nti.edit(model, inversion, "a dog sitting next to a mirror")
    assert_close(computed.latents, replayed.latents)


def test_direct_can_be_led_back_in_part(made: Made) -> None:
    pivot = made("direct").pivot

    def away(inversion: Inversion) -> float:
        return float((inversion.latents - pivot).norm())

    assert_close(made("direct", pull_share=0.0).latents, made("ddim").latents)
    assert 0 < away(made("direct", pull_share=0.8)) < away(made("direct", pull_share=0.4))
    every_second = made("direct", pull_every=2).latents
    assert_close(every_second[1], pivot[1])
    assert relative_error(every_second[2], pivot[2]) > 1e-6
    assert_close(every_second[3], pivot[3])


def test_direct_on_both_branches_leads_edits_too(model: StableDiffusion, made: Made) -> None:
    inversion = made("direct-both-branches")
    assert_close(inversion.latents, inversion.pivot)
    assert inversion.offsets is not None
    loop = Loop(model, inversion)
    for i in range(T):
        short = loop.pivot[i + 1] - loop.step(loop.pivot[i], i, loop.null, loop.cond)
        assert_close(inversion.offsets[i], short[0])
    same = nti.edit(model, inversion, PROMPT, cross_replace=0.0, self_replace=0.0)
    assert_close(same.latents[:, 0], inversion.pivot)


def test_null_latent_converges_to_directs_offsets(made: Made) -> None:
    exact = made("direct-both-branches").offsets
    assert exact is not None
    errors = []
    for iterations in (1, 20, 2000):
        found = made("null-latent", inner_steps=iterations).offsets
        assert found is not None
        errors.append(relative_error(found[0], exact[0]))  # both start at z_T
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-2


def test_learned_offsets_are_those_of_adam() -> None:
    from nti.inversion.pull import learned_offset

    short = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    offset = torch.zeros_like(short).requires_grad_()
    adam = torch.optim.Adam([offset], lr=0.01)
    for _ in range(5):
        adam.zero_grad()
        (offset - short).square().flatten(1).mean(dim=1).sum().backward()
        adam.step()
    assert_close(learned_offset(short, 5, 0.01), offset.detach())


def residual(model: StableDiffusion, pivot: Tensor) -> float:
    """How far the steps at guidance 1 lead from each latent of the pivot to the next."""
    schedule, cond = model.schedule(len(pivot) - 1), model.encode_text([PROMPT])
    short = []
    for i in range(schedule.steps):
        z = pivot[i][None]
        eps = noise(model.unet, z, schedule.timestep(i, z), cond)
        short.append(ddim_step(z, eps, schedule.coefficients(i)) - pivot[i + 1])
    return float(torch.cat(short).norm())


def test_a_fixed_point_is_what_ddim_leads_back_from(model: StableDiffusion, made: Made) -> None:
    ddim = made("ddim", steps=10)
    once = made("ddim", steps=10, pivot="fixed-point", pivot_iterations=1)
    assert_close(once.pivot, ddim.pivot)
    left = [residual(model, ddim.pivot)]
    for iterations in (2, 4, 6):
        found = made("ddim", steps=10, pivot="fixed-point", pivot_iterations=iterations)
        left.append(residual(model, found.pivot))
    assert left == sorted(left, reverse=True) and left[-1] < 0.15 * left[0]
    mixed = made("ddim", steps=10, pivot="anderson", pivot_iterations=4)
    assert residual(model, mixed.pivot) < left[2]


def test_edit_friendly_noises_lead_to_the_image(model: StableDiffusion, made: Made) -> None:
    inversion = made("edit-friendly", steps=20)
    assert inversion.offsets is not None
    assert_close(inversion.latents, inversion.pivot)
    schedule = model.schedule(20, eta=1.0)
    sigma = torch.stack([schedule.sigma(i) for i in range(20)])
    noises = (inversion.offsets / sigma[:, None, None, None]).flatten(1)[:-1]
    assert noises.square().mean() > 1.2  # those of DDPM itself have 1
    neighbours = torch.cosine_similarity(noises[1:], noises[:-1])
    assert neighbours.mean() < -0.1
    other = made("edit-friendly", steps=20, seed=1)
    assert relative_error(other.pivot[0], inversion.pivot[0]) > 0.5
    assert_close(other.latents[-1], inversion.latents[-1])
    free = {"cross_replace": 0.0, "self_replace": 0.0}
    same = nti.edit(model, inversion, PROMPT, start=6, **free)
    assert_close(same.latents[-1, 0], inversion.pivot[-1])


def test_the_autoencoder_has_no_trajectory(
    model: StableDiffusion, image: Tensor, made: Made
) -> None:
    inversion = made("autoencoder")
    assert_close(inversion.latents[-1], model.encode_image(image)[0])
    with pytest.raises(ValueError, match="by autoencoder, which has no trajectory"):
        nti.edit(model, inversion, "a dog")
    with pytest.raises(ValueError, match="has no trajectory for attention"):
        nti.average_attention(model, inversion)


def test_the_search_lowers_the_loss(model: StableDiffusion, made: Made) -> None:
    inversion = made("null-text-fast")
    loop = Loop(model, inversion)
    before = loop.null
    for i in range(T):
        z = inversion.latents[i][None]
        losses = [
            F.mse_loss(loop.step(z, i, u, loop.cond), loop.pivot[i + 1])
            for u in (before, inversion.uncond[i][None])
        ]
        if inversion.iterations[i]:
            assert losses[1] <= losses[0]
            assert losses[0].item() == pytest.approx(inversion.losses[i, 0].item())
        else:
            assert torch.equal(before[0], inversion.uncond[i])
        before = inversion.uncond[i][None]
    assert inversion.iterations == [1, 1, 1, 1]
    assert not torch.equal(inversion.uncond[0], inversion.uncond[-1])


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
    assert found == [0, 8, 16, 24, *range(26, 50)]


def test_a_single_branch_edits_with_the_empty_prompt(model: StableDiffusion, made: Made) -> None:
    prompt = "a dog sitting next to a mirror"
    found = nti.edit(model, made("null-text-single-branch"), prompt)
    expected = nti.edit(model, made("null-text"), prompt, negative_prompt="")
    assert torch.equal(found.latents, expected.latents)


def test_prompts_are_mixed(model: StableDiffusion, made: Made) -> None:
    """At 0 an edit has the learned embedding, so without the source's attention it is the source;
    at 1 that of its own prompt.
    """
    inversion = made("prompt-tuning")
    free = {"cross_replace": 0.0, "self_replace": 0.0}
    own = nti.edit(model, inversion, "a dog", mix=0.0, **free)
    assert_close(own.latents[:, 0], inversion.latents)
    whole = nti.edit(model, inversion, "a dog", mix=1.0, **free)
    plain = nti.edit(model, made("ddim"), "a dog", **free)
    assert_close(whole.latents, plain.latents)
    default = nti.edit(model, inversion, "a dog", **free)
    explicit = nti.edit(model, inversion, "a dog", mix=0.9, **free)
    assert torch.equal(default.latents, explicit.latents)
    with pytest.raises(ValueError, match="mix: got 0.5 for an inversion by ddim, expected none"):
        nti.edit(model, made("ddim"), "a dog", mix=0.5)


@pytest.mark.parametrize("name", ["prompt-tuning", "direct", "edit-friendly", "null-latent"])
def test_what_other_programs_have_no_place_for_is_not_given_to_them(made: Made, name: str) -> None:
    with pytest.raises(ValueError, match=f"inversion: got one by {name}, whose source is not"):
        nti.to_published(made(name))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "magic"}, "method: got 'magic', expected one of null-text, null-text-fast"),
        ({"pivot": "magic"}, "pivot: got 'magic', expected one of ddim, fixed-point, anderson"),
        (
            {"method": "edit-friendly", "pivot": "anderson"},
            "pivot: got 'anderson' for edit-friendly, expected none",
        ),
        ({"pull_share": 0.5}, "pull_share: got 0.5 for null-text, expected 1.0: .* of direct"),
        ({"method": "direct", "pull_share": 2}, r"pull_share: got 2.*expected .*1"),
        ({"method": "direct", "pull_every": 0}, "pull_every: got 0"),
        ({"towards_null": 0.5}, "towards_null: got 0.5 for null-text, .* negative-prompt"),
        ({"seed": -1}, "seed: got -1"),
        ({"pivot_iterations": 0}, "pivot_iterations: got 0"),
        ({"pivot_iterations": 3}, "pivot_iterations: got 3 for the pivot ddim, which has none"),
        ({"pivot": "anderson", "noise_at": "current"}, "noise_at: got 'current' for the pivot"),
        ({"method": "null-text-global", "inner_steps": 0}, "inner_steps: got 0"),
    ],
    ids=lambda x: "-".join(map(str, x)) if isinstance(x, dict) else "",
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InversionSettings(**settings)


def test_every_row_is_documented() -> None:
    for name, row in METHODS.items():
        assert isinstance(row, Method) and row.name == name and row.summary and row.paper
