"""A network that predicts v: every algorithm, execution and gradient sees eps."""

import pytest
import torch
from diffusers import DDIMScheduler

from graph_stand_in import capture
from nti import StableDiffusion, edit, invert
from nti.execution.compiled import compiles
from nti.execution.cuda_graph import captured_steps
from nti.networks.control import MapCollector
from nti.sampling.schedule import alpha_bars, ddim_step
from nti.sampling.step import IterationInputs, controlled_noise, noise
from tiny import V_TINY, make_model
from tolerances import assert_close, relative_error

SETTINGS = {"steps": 2, "guidance_scale": 3.0, "inner_steps": 1}


@pytest.fixture(scope="module")
def velocity() -> StableDiffusion:
    return make_model(V_TINY)


def inputs(model: StableDiffusion) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    latent = torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=g)
    return latent, model.encode_text(["a cat", "a dog"])


def test_ddim_steps_are_diffusers_steps_on_the_same_outputs(velocity: StableDiffusion) -> None:
    process = V_TINY.schedule
    theirs = DDIMScheduler(
        beta_start=process.beta_start, beta_end=process.beta_end, beta_schedule="scaled_linear",
        prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    theirs.alphas_cumprod = theirs.final_alpha_cumprod = alpha_bars(process)
    theirs.final_alpha_cumprod = theirs.alphas_cumprod[0]
    theirs.set_timesteps(10)
    schedule = velocity.schedule(10)
    latent, context = inputs(velocity)
    expected = latent
    for i, timestep in enumerate(schedule.timesteps):
        t = torch.tensor(timestep)
        output, _ = velocity.unet(expected, t.expand(2), context)
        expected = theirs.step(output, timestep, expected).prev_sample
        latent = ddim_step(
            latent, velocity.steps.noise(latent, t, context), schedule.coefficients(i)
        )
        assert_close(latent, expected)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear"])
def test_either_spacing_of_the_betas_is_diffusers(kind: str) -> None:
    process = V_TINY.schedule
    theirs = DDIMScheduler(
        beta_start=process.beta_start, beta_end=process.beta_end, beta_schedule=kind
    )
    fields = {**vars(process), "beta_schedule": kind}
    found = alpha_bars(type(process)(**fields))
    assert torch.allclose(found.float(), theirs.alphas_cumprod, rtol=2e-5, atol=0)


def test_rows_of_a_batch_have_timesteps_of_their_own(velocity: StableDiffusion) -> None:
    latent, context = inputs(velocity)
    both = velocity.steps.noise(latent, torch.tensor([981, 1]), context)
    for row, t in enumerate((981, 1)):
        alone = velocity.steps.noise(latent[row : row + 1], torch.tensor(t), context[row : row + 1])
        assert_close(both[row : row + 1], alone)


def test_half_precision_ends_at_the_network(velocity: StableDiffusion) -> None:
    half = make_model(V_TINY, torch.bfloat16)
    latent, context = (x.float() for x in inputs(velocity))
    output, _ = half.unet(latent.bfloat16(), torch.tensor([981, 981]), context.bfloat16())
    alpha_bar = alpha_bars(V_TINY.schedule)[981]
    expected = alpha_bar.sqrt() * output.double() + (1 - alpha_bar).sqrt() * latent.double()
    found = half.steps.noise(latent, torch.tensor(981), context)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 1e-6


def test_a_gradient_goes_through_to_the_context_and_the_latent(velocity: StableDiffusion) -> None:
    latent, context = (x[:1].clone().requires_grad_() for x in inputs(velocity))

    def eps(latent: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return noise(velocity.unet, latent, torch.tensor(481), context).square().sum()

    direction = torch.ones_like(latent), torch.ones_like(context)
    grads = torch.autograd.grad(eps(latent, context), (latent, context))
    slope = sum((g * d).sum() for g, d in zip(grads, direction, strict=True))
    h = 1e-5
    up, down = (eps(latent + s * h, context + s * h) for s in (1, -1))
    assert relative_error(slope, (up - down) / (2 * h)) < 1e-7  # of the difference quotient


def test_a_hook_sees_the_maps_and_the_result_is_eps(velocity: StableDiffusion) -> None:
    latent, context = inputs(velocity)
    maps = MapCollector()
    found, _ = controlled_noise(velocity.unet, latent, torch.tensor(481), context, None, maps)
    assert maps.maps
    assert_close(found, velocity.steps.noise(latent, torch.tensor(481), context))


def test_graphs_invert_and_edit_alike(velocity: StableDiffusion, image: torch.Tensor) -> None:
    graphs = captured_steps(velocity.steps, capture=capture)
    other = StableDiffusion(
        velocity.config, velocity.unet, velocity.vae, velocity.text, velocity.tokenizer, graphs
    )
    plain, found = (invert(model, image, "a cat", **SETTINGS) for model in (velocity, other))
    assert_close(found.uncond, plain.uncond)
    assert_close(found.latents, plain.latents)
    assert_close(*(edit(model, plain, "a dog").latents for model in (other, velocity)))


@pytest.mark.skipif(not compiles(), reason="needs PyTorch 2.11")
def test_a_compiled_iteration_is_the_same(velocity: StableDiffusion) -> None:
    latent, context = inputs(velocity)
    x = IterationInputs.first(
        context, latent, velocity.schedule(10), 3, eps_cond=latent.flip(0), target=latent.flip(1),
        guidance_scale=3.0, learning_rate=1e-2,
    )  # fmt: skip
    torch._dynamo.reset()
    compiled = velocity.with_execution("compiled", compiler="eager").steps
    found, expected = (s.null_text_iteration(x) for s in (compiled, velocity.steps))
    assert_close(found.losses, expected.losses)
    assert_close(found.adam.mean, expected.adam.mean)


def test_another_backend_keeps_what_is_predicted(velocity: StableDiffusion) -> None:
    assert velocity.unet.with_backend("reference").schedule == V_TINY.schedule
    assert make_model().unet.schedule != V_TINY.schedule
