"""Half precision in the networks, at least float32 everywhere else."""

from collections.abc import Iterator

import pytest
import torch

import nti
from nti import Inversion, StableDiffusion, edit, invert, load_model, reconstruct
from nti.demo import psnr, sample_captions, sample_image
from nti.image import load_image
from nti.inversion.inversion import TENSORS
from nti.sampling.step import AdamState, IterationInputs
from tiny import make_model
from tolerances import RELATIVE, assert_close, relative_error

PROMPT, TIGER = "a cat sitting next to a mirror", "a tiger sitting next to a mirror"
HALF = [torch.float16, torch.bfloat16]

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
    ),
]


NAME = "purple-circle"


def reconstruction_psnr(model: StableDiffusion) -> tuple[Inversion, float]:
    """Invert a sample in five steps at w = 3; return the PSNR of what comes back."""
    source = load_image(sample_image(NAME), 128)
    result = invert(
        model, source, sample_captions()[NAME], steps=5, guidance_scale=3.0, inner_steps=5
    )
    return result, psnr(load_image(reconstruct(model, result), 128), source)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALF, ids=lambda d: str(d).removeprefix("torch."))
def test_half_networks_reconstruct_as_well_and_keep_the_rest_in_float32(
    embedded: StableDiffusion, device: str, dtype: torch.dtype
) -> None:
    _, full = reconstruction_psnr(embedded)
    model = load_model(device=device, dtype=dtype)
    inversion, half = reconstruction_psnr(model)
    for name in TENSORS:
        assert getattr(inversion, name).dtype == torch.float32, name
    assert abs(half - full) < 0.3, f"{half:.2f} dB, float32 {full:.2f} dB"

    green = "a green circle on snow"
    result = edit(model, inversion, green, blend=("circle", "circle"))
    assert result.latents.dtype == torch.float32 and result.latents.isfinite().all()
    assert result.masks is not None
    assert result.masks[-1].any() and not result.masks[-1].all()


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def exact() -> StableDiffusion:
    return load_model(device="cpu", dtype=torch.float64)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("name", ["purple-circle", "heart-and-cross"])
def test_float32_is_exact_from_the_file_to_the_noise(
    embedded: StableDiffusion, exact: StableDiffusion, name: str
) -> None:
    """Through what users call: an image file comes with its channels last in memory."""
    image = load_image(sample_image(name), 128)
    assert image.stride(1) == 1
    z = embedded.encode_image(image)
    z_exact = exact.encode_image(image.double())
    assert_close(z, z_exact.float())
    assert torch.equal(z, embedded.encode_image(image.contiguous()))
    last = z.to(memory_format=torch.channels_last)
    assert_close(embedded.decode_latent(last), exact.decode_latent(last.double()).float())
    prompt = sample_captions()[name]
    found, expected = (
        model.steps.noise(last.to(model.dtype), torch.tensor(481), model.encode_text([prompt]))
        for model in (embedded, exact)
    )
    assert_close(found, expected.float())


@pytest.mark.usefixtures("threads")
def test_a_reconstruction_in_float32_is_that_in_float64(
    embedded: StableDiffusion, exact: StableDiffusion
) -> None:
    image = load_image(sample_image(NAME), 128)
    made = [
        invert(m, image, sample_captions()[NAME], steps=4, method="ddim", guidance_scale=3.0)
        for m in (embedded, exact)
    ]
    latents = [nti.reconstruct_latents(m, i) for m, i in zip((embedded, exact), made, strict=True)]
    # Eight passes of the UNet, each fed with what the one before left.
    assert relative_error(latents[0], latents[1].float()) < 10 * RELATIVE[torch.float32]


def test_a_float64_model_is_float64_throughout(model: StableDiffusion) -> None:
    image = torch.zeros(1, 3, 64, 64)
    result = invert(model, image, PROMPT, steps=2, guidance_scale=3.0, inner_steps=1)
    assert all(getattr(result, name).dtype == torch.float64 for name in TENSORS)
    assert edit(model, result, TIGER).latents.dtype == torch.float64


def test_a_gradient_too_small_for_half_precision_still_arrives() -> None:
    """A cotangent of 1e-8 is zero in float16; normalised it is not."""
    model = make_model(dtype=torch.float16)
    g = torch.Generator().manual_seed(0)
    latent = torch.randn(1, 4, 8, 8, generator=g)
    uncond, cond = model.encode_text([""]), model.encode_text([PROMPT])

    schedule = model.schedule(50)
    t, step = schedule.timestep(0, latent), schedule.coefficients(0).to(latent)
    arrived = step.latent * latent + step.eps * model.steps.noise(latent, t, uncond)
    made = model.steps.null_text_iteration(
        IterationInputs(
            uncond=uncond,
            adam=AdamState.fresh(uncond),
            active=torch.tensor([True]),
            latent=latent,
            timestep=t,
            eps_cond=model.steps.noise(latent, t, cond),
            target=arrived + 1e-4,
            coefficients=step,
            guidance_scale=torch.tensor(1.0 + 1e-3),
            learning_rate=torch.tensor(1e-2),
        )
    )
    assert made.losses.item() > 0 and made.adam.mean.abs().max() > 0


def test_float32_is_not_rounded_to_tf32_in_tests() -> None:
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
