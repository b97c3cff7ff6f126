"""Repainting with a UNet that takes the mask and the masked image."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import nti
from nti import Inversion, StableDiffusion
from nti.editing.inpaint import inpaint_latents
from nti.sampling.schedule import noised
from tiny import INPAINTING, TINY, make_model
from tolerances import assert_close

PROMPT = "a cat sitting next to a mirror"


@pytest.fixture(scope="module")
def inpainting() -> StableDiffusion:
    return make_model(INPAINTING)


@pytest.fixture(scope="module")
def hole() -> Tensor:
    """The middle of the picture: positions 2 to 5 of the latent's 8, along both sides."""
    mask = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    mask[..., 16:48, 16:48] = True
    return mask


def with_noise(
    model: StableDiffusion, noise: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> StableDiffusion:
    """The same model, whose steps predict something else."""
    steps = dataclasses.replace(model.steps, noise=noise)
    return StableDiffusion(model.config, model.unet, model.vae, model.text, model.tokenizer, steps)


def ideal(model: StableDiffusion, paint: float) -> StableDiffusion:
    """A model that keeps what the mask leaves, and paints a constant where it is 1."""
    alpha_bar = dict(zip(model.schedule(5).timesteps, model.schedule(5).alpha_bar, strict=True))

    def noise(latent: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        z_t, mask, masked = latent.split([4, 1, 4], dim=1)
        z_0 = torch.where(mask == 1, paint, masked)
        a = alpha_bar[int(timestep)]
        return (z_t - a.sqrt() * z_0) / (1 - a).sqrt()

    return with_noise(model, noise)


def test_the_mask_is_1_where_it_repaints(
    inpainting: StableDiffusion, image: Tensor, hole: Tensor
) -> None:
    schedule = inpainting.schedule(5)
    grey = inpainting.encode_image(torch.where(hole, 0.0, image))
    made = inpaint_latents(ideal(inpainting, 3.0), image, hole, PROMPT, steps=5)
    inside = made.masks[-1, 0]
    assert inside.sum() == 16 and inside[2:6, 2:6].all()
    # The last step arrives at alpha_bar[0], where a little of its noise is left.
    left = 4 * float((1 - schedule.alpha_bar_next[-1]).sqrt())
    result = made.latents[-1, 0]
    assert ((result - 3.0).abs() < left)[:, inside].all()
    assert ((result - grey[0]).abs() < left)[:, ~inside].all()
    wrong = inpaint_latents(ideal(inpainting, 3.0), image, ~hole, PROMPT, steps=5)
    assert ((wrong.latents[-1, 0] - 3.0).abs() < left)[:, ~inside].all()


def test_both_halves_of_the_batch_have_the_mask_and_the_masked_image(
    inpainting: StableDiffusion, image: Tensor, hole: Tensor
) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def noise(latent: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        seen.append((latent, context))
        return inpainting.steps.noise(latent, timestep, context)

    prompts = ["a cat", "a dog"]
    inpaint_latents(
        with_noise(inpainting, noise), image, hole, prompts, steps=2, negative_prompt="a frog"
    )
    masked = inpainting.encode_image(image * ~hole)
    frog = inpainting.encode_text(["a frog"]).expand(2, -1, -1)
    states = torch.cat([frog, inpainting.encode_text(prompts)])
    assert len(seen) == 2
    for latent, context in seen:
        assert latent.shape == (4, 9, 8, 8) and torch.equal(context, states)
        assert torch.equal(latent[:2, :4], latent[2:, :4])
        assert torch.equal(latent[:, 4:5], hole[..., ::8, ::8].double().expand(4, -1, -1, -1))
        assert torch.equal(latent[:, 5:], masked.expand(4, -1, -1, -1))


def test_additional_channels_of_no_weight_change_nothing(inpainting: StableDiffusion) -> None:
    plain = make_model(TINY)
    state = plain.unet.state_dict()
    wide = inpainting.unet.state_dict()["conv_in.weight"].clone()
    wide[:, :4], wide[:, 4:] = state["conv_in.weight"], 0
    zeroed = make_model(INPAINTING)
    zeroed.unet.load_state_dict({**state, "conv_in.weight": wide})
    g = torch.Generator().manual_seed(0)
    latent = torch.randn(2, 9, 8, 8, generator=g, dtype=torch.float64)
    context = torch.randn(2, 77, 24, generator=g, dtype=torch.float64)
    t = torch.tensor([981, 21])
    found = zeroed.steps.noise(latent, t, context)
    assert_close(found, plain.steps.noise(latent[:, :4].contiguous(), t, context))


def test_the_order_of_the_channels_matters(inpainting: StableDiffusion) -> None:
    g = torch.Generator().manual_seed(0)
    latent = torch.randn(1, 9, 8, 8, generator=g, dtype=torch.float64)
    context = torch.randn(1, 77, 24, generator=g, dtype=torch.float64)
    t = torch.tensor(481)
    plain = inpainting.steps.noise(latent, t, context)
    mask_last = latent[:, [0, 1, 2, 3, 5, 6, 7, 8, 4]].contiguous()
    assert (inpainting.steps.noise(mask_last, t, context) - plain).norm() > 0.1 * plain.norm()


def test_v_predictions_are_turned_to_noise_by_z_t_alone() -> None:
    v = dataclasses.replace(INPAINTING.schedule, prediction="v_prediction")
    predicts_v = make_model(dataclasses.replace(INPAINTING, schedule=v))
    latent = torch.randn(1, 9, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    context = predicts_v.encode_text([PROMPT])
    t = torch.tensor([481])
    velocity, _ = predicts_v.unet(latent, t, context)
    a = predicts_v.schedule(999).alpha_bar[999 - 481]
    expected = a.sqrt() * velocity + (1 - a).sqrt() * latent[:, :4]
    assert_close(predicts_v.steps.noise(latent, t, context), expected)


def test_below_full_strength_it_starts_from_the_image_under_noise(
    inpainting: StableDiffusion, image: Tensor, hole: Tensor
) -> None:
    schedule, z_0 = inpainting.schedule(10), inpainting.encode_image(image)
    whole = inpaint_latents(inpainting, image, hole, PROMPT, steps=10, seed=3)
    part = inpaint_latents(inpainting, image, hole, PROMPT, steps=10, seed=3, strength=0.45)
    eps = whole.latents[0]
    assert len(whole.latents) == 11 and len(part.latents) == 5 and len(part.masks) == 4
    assert_close(part.latents[0], noised(z_0, eps, schedule.alpha_bar[6]))
    # Of pure noise no more than chance is like the image.
    assert abs(float((eps * z_0).sum() / (eps.norm() * z_0.norm()))) < 0.2
    assert torch.equal(part.source, z_0)


def test_a_seed_is_a_result(inpainting: StableDiffusion, image: Tensor, hole: Tensor) -> None:
    first, again, other = (
        inpaint_latents(inpainting, image, hole, PROMPT, steps=2, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first.latents, again.latents)
    assert not torch.equal(first.latents[-1], other.latents[-1])


def test_pixels_outside_the_mask_are_the_images_own_if_asked(
    inpainting: StableDiffusion, image: Tensor, hole: Tensor
) -> None:
    own = nti.to_pil(image)[0]
    plain = nti.inpaint(inpainting, image, hole, PROMPT, steps=2).images[0]
    kept = nti.inpaint(inpainting, image, hole, PROMPT, steps=2, keep_outside=True).images[0]
    different = [
        {(x, y) for x in range(64) for y in range(64) if a.getpixel((x, y)) != b.getpixel((x, y))}
        for a, b in ((kept, own), (kept, plain))
    ]
    inside = {(x, y) for x in range(16, 48) for y in range(16, 48)}
    assert different[0] and different[0] <= inside
    assert different[1] and not different[1] & inside


def test_every_step_is_reported_and_may_stop_the_run(
    inpainting: StableDiffusion, image: Tensor, hole: Tensor
) -> None:
    heard: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> bool:
        heard.append((done, total))
        return len(heard) == 5

    given = inpainting, image, hole, PROMPT
    nti.inpaint(*given, steps=6, strength=0.5, callback=stop)
    with pytest.raises(nti.Stopped, match="after step 2 of 3"):
        nti.inpaint(*given, steps=3, callback=stop)
    assert heard == [(1, 3), (2, 3), (3, 3), (1, 3), (2, 3)]


def test_latents_that_overflow_name_the_step(
    inpainting: StableDiffusion, image: Tensor, hole: Tensor
) -> None:
    broken = with_noise(inpainting, lambda latent, *_: latent[:, :4] * torch.inf)
    with pytest.raises(nti.NotFiniteError, match=r"inpainting at timestep 501: .* torch.float64"):
        nti.inpaint(broken, image, hole, PROMPT, steps=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask": torch.zeros(64, 64)}, "mask: got one without white in any of the 8 x 8"),
        ({"mask": torch.ones(32, 64)}, r"mask: got a tensor \(32, 64\)"),
        ({"prompts": []}, "prompts: got none"),
        ({"prompts": 3}, "prompts: got 3"),
        ({"negative_prompt": None}, "negative_prompt: got None"),
        ({"steps": 0}, "steps: got 0"),
        ({"strength": 1.5}, "strength: got 1.5"),
        ({"strength": 0.3}, r"strength: got 0.3 of 3 steps, .* expected 0.333333 to 1"),
        ({"guidance_scale": "much"}, "guidance_scale: got 'much'"),
        ({"seed": -1}, "seed: got -1"),
        ({"callback": 3}, "callback: got 3"),
        ({"size": 64}, "size: got 64 for a tensor"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_what_does_not_fit_is_an_error(
    inpainting: StableDiffusion,
    image: Tensor,
    hole: Tensor,
    settings: dict[str, Any],
    message: str,
) -> None:
    given = {"image": image, "mask": hole, "prompts": PROMPT, "steps": 3} | settings
    with pytest.raises(ValueError, match=message) as error:
        nti.inpaint(inpainting, **given)
    assert "\n" not in str(error.value)


def test_a_model_that_takes_latents_alone_is_refused(
    model: StableDiffusion, image: Tensor, hole: Tensor
) -> None:
    message = r"model: got tiny, whose UNet takes 4 channels, expected 9 .*: load a Stable Diff"
    with pytest.raises(ValueError, match=message):
        nti.inpaint(model, image, hole, PROMPT)
    with pytest.raises(ValueError, match="model: got None"):
        nti.inpaint(None, image, hole, PROMPT)


REFUSING: dict[str, Callable[[StableDiffusion, Tensor, Inversion], object]] = {
    "invert, before the image is read": lambda m, _, __: nti.invert(m, "none.png", PROMPT),
    "invert without a trajectory": lambda m, x, _: nti.invert(m, x, PROMPT, method="autoencoder"),
    "invert_latent": lambda m, _, i: nti.invert_latent(m, i.pivot[-1:], [PROMPT]),
    "generate": lambda m, _, __: nti.generate(m, PROMPT, steps=2),
    "edit": lambda m, _, i: nti.edit(m, i, PROMPT),
    "reconstruct": lambda m, _, i: nti.reconstruct(m, i),
    "attention": lambda m, _, i: nti.average_attention(m, i),
    "from_published": lambda m, _, i: nti.from_published(m, *nti.to_published(i), PROMPT),
}


@pytest.mark.parametrize("run", REFUSING.values(), ids=REFUSING)
def test_what_needs_latents_alone_refuses_an_inpainting_model(
    inpainting: StableDiffusion,
    image: Tensor,
    inversion: Inversion,
    run: Callable[[StableDiffusion, Tensor, Inversion], object],
) -> None:
    message = "model: got tiny inpainting, whose UNet takes 9 channels, expected one that takes 4"
    with pytest.raises(ValueError, match=message):
        run(inpainting, image, inversion)
