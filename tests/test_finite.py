"""Values that overflow are an error that names step and dtype, wherever they would leave."""

import dataclasses
import warnings
from collections.abc import Callable

import pytest
import torch

import nti
from nti import Inversion, NotFiniteError, StableDiffusion
from nti.execution.steps import Steps
from tiny import make_model

TIGER = "a tiger sitting next to a mirror"
SETTINGS = {"steps": 3, "guidance_scale": 3.0, "inner_steps": 1}


def overflowing(model: StableDiffusion, step: str, after: int) -> StableDiffusion:
    """A model whose step is infinite after so many calls."""
    calls = 0
    plain = getattr(model.steps, step)

    def broken(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        made = plain(*arguments)
        if calls <= after:
            return made
        return (made[0] * torch.inf, made[1]) if isinstance(made, tuple) else made * torch.inf

    steps: Steps = dataclasses.replace(model.steps, **{step: broken})
    return StableDiffusion(model.config, model.unet, model.vae, model.text, model.tokenizer, steps)


Run = Callable[[StableDiffusion, torch.Tensor, Inversion], object]


@pytest.mark.parametrize(
    ("run", "step", "after", "message"),
    [
        (
            lambda m, x, _: nti.invert(m, x, "a cat", **SETTINGS),
            "noise", 1, r"DDIM inversion to timestep 334: .* not finite, in torch\.float64",
        ),
        (
            lambda m, x, _: nti.invert(m, x, "a cat", **SETTINGS),
            "noise", 3, r"null-text optimization at timestep 667: .* torch\.float64",
        ),
        (lambda m, _, i: nti.reconstruct(m, i), "guided_step", 4, "sampling at timestep 501: "),
        (lambda m, _, i: nti.edit(m, i, TIGER), "controlled_noise", 9, "edit at timestep 1: "),
        (
            lambda m, _, __: nti.generate(m, "a cat", steps=4), "guided_step", 0,
            "sampling at timestep 751: ",
        ),
        (
            lambda m, _, i: nti.sdedit(m, i, TIGER, strength=0.5), "noise", 1,
            r"SDEdit at timestep 301: .* torch\.float64",
        ),
        (
            lambda m, _, i: nti.masked(m, i, TIGER, mask=torch.eye(64), strength=0.5), "noise", 1,
            "masked edit at timestep 301: ",
        ),
        (
            lambda m, _, i: nti.diffedit(m, i, TIGER, noises=2), "noise", 1,
            "DiffEdit's mask at timestep 401: ",
        ),
        (
            lambda m, _, i: nti.diffedit(m, i, TIGER, noises=2), "noise", 2,
            "DiffEdit at timestep 701: ",
        ),
        (
            lambda m, _, i: nti.masactrl(m, i, TIGER), "controlled_noise", 9,
            "MasaCtrl at timestep 1: ",
        ),
    ],
    ids=[
        "pivot", "optimization", "reconstruct", "edit", "generate", "sdedit", "masked", "mask",
        "diffedit", "masactrl",
    ],
)  # fmt: skip
def test_every_loop_names_the_step_and_the_dtype(
    model: StableDiffusion, image: torch.Tensor, inversion: Inversion, run: Run, step: str,
    after: int, message: str,
) -> None:  # fmt: skip
    with pytest.raises(NotFiniteError, match=message):
        run(overflowing(model, step, after), image, inversion)


def test_encoding_and_decoding_are_guarded(image: torch.Tensor) -> None:
    model = make_model()
    with pytest.raises(NotFiniteError, match="latent to decode: got values that are not finite"):
        model.decode_latent(torch.full((1, 4, 8, 8), torch.nan))
    torch.nn.init.constant_(model.vae.decoder.conv_out.weight, torch.inf)
    with pytest.raises(NotFiniteError, match=r"decoder: got values .* in torch\.float64"):
        model.decode_latent(torch.zeros(1, 4, 8, 8))
    torch.nn.init.constant_(model.vae.encoder.conv_in.weight, torch.inf)
    with pytest.raises(NotFiniteError, match="encoder: got values"):
        model.encode_image(image)
    torch.nn.init.constant_(model.text.tower.ln_final.weight, torch.inf)
    with pytest.raises(NotFiniteError, match="text encoder: got values"):
        model.encode_text(["a cat"])
    with pytest.raises(NotFiniteError, match="latent to invert"):
        nti.invert_latent(model, torch.full((1, 4, 8, 8), torch.nan), ["a cat"])


def test_a_factor_that_half_precision_cannot_hold_is_refused(inversion: Inversion) -> None:
    """It used to end in a black picture, without a word."""
    half = make_model(dtype=torch.float16)
    with pytest.raises(ValueError, match=r"reweight: got a factor of 100000, .* at most 65504"):
        nti.edit(half, inversion, TIGER, reweight={"tiger": 1e5})
    with pytest.raises(NotFiniteError, match=r"edit at timestep \d+: .* torch\.float16: use bf"):
        nti.edit(half, inversion, TIGER, reweight={"tiger": 6e4})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reweight": {"green": 1e30}}, r"edit at timestep \d+: got values that are not finite"),
        ({"reweight": {"green": 1e39}}, r"reweight: got a factor of 1e\+39, expected at most 3\.4"),
        ({"guidance_scale": 1e38}, r"edit at timestep \d+: got values that are not finite"),
        ({"guidance_scale": 1e38, "start": 3}, "decoder: got values that are not finite"),
    ],
    ids=["factor", "larger-factor", "guidance", "guidance-at-last"],
)
def test_extreme_settings_are_an_error_and_no_black_picture(
    embedded: StableDiffusion, settings: dict[str, object], message: str
) -> None:
    made = nti.generate(embedded, "a purple circle on snow", steps=4)
    with pytest.raises(ValueError, match=message) as error:
        nti.edit(embedded, made, "a green circle on snow", **settings)
    assert "smaller" in str(error.value) or "extreme factors, guidance" in str(error.value)


def test_a_large_factor_still_gives_a_picture(embedded: StableDiffusion) -> None:
    made = nti.generate(embedded, "a purple circle on snow", steps=4)
    image = nti.edit(embedded, made, "a green circle on snow", reweight={"green": 1e4}).images[0]
    low, high = image.convert("L").getextrema()
    assert high - low > 20


@pytest.mark.parametrize("name", ["uncond", "pivot", "latents"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_inversion_of_values_that_are_not_finite_is_refused(
    inversion: Inversion, name: str, value: float
) -> None:
    values = getattr(inversion, name).clone()
    values[3].flatten()[0] = value
    with pytest.raises(ValueError, match=rf"{name}: got .* not finite"):
        dataclasses.replace(inversion, **{name: values})


def test_a_picture_of_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="of finite values"):
        nti.to_pil(torch.full((1, 3, 4, 4), torch.nan))


def test_the_autoencoder_is_exact_where_the_unet_is_in_float16() -> None:
    dtypes = {}
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        model = nti.load_model(device="cpu", dtype=dtype)
        dtypes[model.dtype] = model.vae.dtype, model.encode_text(["a circle"]).dtype
    assert dtypes == {
        torch.float16: (torch.float32, torch.float32),
        torch.bfloat16: (torch.bfloat16, torch.float32),
        torch.float32: (torch.float32, torch.float32),
        torch.float64: (torch.float64, torch.float64),
    }


def test_batches_are_encoded_and_decoded_image_by_image(model: StableDiffusion) -> None:
    sizes: list[int] = []
    hooks = [
        each.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
        for each in (model.vae.encoder, model.vae.decoder)
    ]
    z = model.encode_image(torch.zeros(3, 3, 64, 64))
    assert z.shape == (3, 4, 8, 8) and model.decode_latent(z).shape == (3, 3, 64, 64)
    assert sizes == [1] * 6
    for hook in hooks:
        hook.remove()


def test_networks_are_taken_as_they_are() -> None:
    given = make_model()
    given.unet.train().requires_grad_(True)
    given.unet.to(memory_format=torch.contiguous_format)
    StableDiffusion(given.config, given.unet, given.vae, given.text, given.tokenizer)
    weight = given.unet.conv_in.weight
    assert given.unet.training and weight.requires_grad and weight.is_contiguous()


def test_an_edit_leaves_the_warning_filters_alone(
    model: StableDiffusion, inversion: Inversion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Filters are the process's; swapped by two threads, `ignore` stays behind for good."""
    seen: list[bool] = []
    before, encode = list(warnings.filters), model.tokenizer.encode

    def looking(text: str) -> object:
        seen.append(warnings.filters == before)
        return encode(text)

    monkeypatch.setattr(model.tokenizer, "encode", looking)
    nti.edit(model, inversion, TIGER)
    assert len(seen) >= 4 and all(seen) and warnings.filters == before


def test_attention_is_guarded_too(model: StableDiffusion, inversion: Inversion) -> None:
    spoilt = dataclasses.replace(inversion, latents=inversion.latents.clone())
    spoilt.latents[3] = torch.nan  # behind the back of the check that an inversion makes
    with pytest.raises(NotFiniteError, match=r"attention at timestep 601: .* torch\.float64"):
        nti.average_attention(model, spoilt)


def test_a_prompt_that_is_cut_is_warned_of_where_it_is_encoded(model: StableDiffusion) -> None:
    with pytest.warns(UserWarning, match="longer than 75 tokens; this was cut: 'tiger'"):
        model.encode_text(["a cat", "cat " * 75 + "tiger"])
