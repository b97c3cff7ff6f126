"""Each inversion method by what tells it from its neighbours, on the tiny model."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import nti
from nti import Inversion, StableDiffusion
from nti.inversion.noised import draw
from nti.inversion.null_text import published_learning_rate
from nti.inversion.pull import learned_offset
from nti.sampling.schedule import ddim_step, noised
from nti.sampling.step import guided_noise, noise
from plain_loop import PROMPT, Loop, Made, N, T, W
from tolerances import RELATIVE_OPTIMIZED, assert_close, relative_error


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
