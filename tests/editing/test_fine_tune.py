"""A copy of the UNet learns; the model does not."""

import pytest
import torch
from torch import Tensor

import nti
from fitting import weights_of
from nti import Inversion, StableDiffusion
from nti.config import SD_V1
from nti.editing.fine_tune import BYTES, all_timesteps, fine_tune, noise_loss
from nti.editing.imagic import Imagic
from nti.editing.unitune import UniTune
from nti.model import skeletons
from nti.sampling.step import noise
from tiny import V_TINY, make_model
from tolerances import RELATIVE_OPTIMIZED, assert_close, relative_error

RATE = 1e-3


def everything(name: str) -> bool:
    return True


def biases(name: str) -> bool:
    return name.endswith("bias")


@pytest.fixture(scope="module")
def latent() -> Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)).double()


def tuned(model: StableDiffusion, latent: Tensor, **settings: object) -> nti.networks.unet.UNet:
    context = model.encode_text(["a cat"])
    given = {"learns": everything, "iterations": 2, "learning_rate": RATE, "batch": 1} | settings
    generator = torch.Generator().manual_seed(3)
    return fine_tune(model, latent, context, generator=generator, **given)


def draws(latent: Tensor, count: int) -> tuple[list[int], Tensor]:
    """Timesteps' indices, and noises (count, 1, 4, h, w), as fine-tuning draws them."""
    generator = torch.Generator().manual_seed(3)
    indices, noises = [], []
    for _ in range(count):
        indices.append(int(torch.randint(999, (), generator=generator)))
        noises.append(torch.randn(1, 4, 8, 8, generator=generator))
    return indices, torch.stack(noises).to(latent)


@pytest.mark.parametrize("config", [None, V_TINY], ids=["noise", "v"])
def test_the_loss_is_that_of_the_noise(latent: Tensor, config: object) -> None:
    model = make_model() if config is None else make_model(config)
    context = model.encode_text(["a cat"])
    eps = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2)).double()
    found = noise_loss(model.unet, latent, context, all_timesteps(model), 998 - 400, eps)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    a = torch.cumprod(1 - betas, 0)[401]
    z_t = a.sqrt() * latent + (1 - a).sqrt() * eps
    output, _ = model.unet(z_t, torch.tensor([401]), context)
    if config is not None:
        output = a.sqrt() * output + (1 - a).sqrt() * z_t
    assert_close(found, torch.mean((output - eps) ** 2))


def test_it_is_adam_on_the_mean_of_the_batch(model: StableDiffusion, latent: Tensor) -> None:
    """Gradients that add up one by one are those of a batch."""
    found, losses = tuned(model, latent, batch=3)
    plain = make_model().unet.requires_grad_(True)
    adam = torch.optim.Adam(plain.parameters(), lr=RATE)
    indices, noises = draws(latent, 6)
    schedule = all_timesteps(model)
    context = model.encode_text(["a cat"]).expand(3, -1, -1)
    for i in (0, 3):
        at, eps = indices[i : i + 3], noises[i : i + 3, 0]
        a = schedule.alpha_bar[at][:, None, None, None]
        z_t = a.sqrt() * latent + (1 - a).sqrt() * eps
        output, _ = plain(z_t, torch.tensor([schedule.timesteps[k] for k in at]), context)
        loss = (output - eps).square().mean()
        assert_close(losses[i // 3], loss.detach())
        adam.zero_grad()
        loss.backward()
        adam.step()
    for name, weight in plain.named_parameters():
        # Adam divides by the gradient's own size, and some gradients are rounding alone.
        near = (found.state_dict()[name] - weight.detach()).abs().max() <= 1e-3 * RATE
        assert near or relative_error(found.state_dict()[name], weight) < RELATIVE_OPTIMIZED, name


@pytest.mark.parametrize("learns", [everything, biases])
def test_what_learns_moves_and_nothing_else(
    model: StableDiffusion, latent: Tensor, learns: object
) -> None:
    before = weights_of(model)
    unet, _ = tuned(model, latent, learns=learns)
    for name, weight in unet.named_parameters():
        assert torch.equal(weight, before[name]) != learns(name), name
        assert not weight.requires_grad and weight.grad is None and not unet.training
        # What does not learn is no second copy.
        own = model.unet.get_parameter(name)
        assert (weight.data_ptr() == own.data_ptr()) != learns(name), name
        assert weight.stride() == own.stride()
    for name, weight in model.unet.named_parameters():
        assert torch.equal(weight, before[name]) and not weight.requires_grad
        assert weight.grad is None


def test_a_model_that_computes_blocks_again_learns_the_same(latent: Tensor) -> None:
    """Its backward pass gives the weights no gradient, so the copy keeps what is inside blocks."""
    plain, low = (tuned(make_model(recompute=r), latent)[0] for r in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), low.parameters(), strict=True))


def test_a_copy_that_predicts_v_is_known_to(latent: Tensor) -> None:
    predicts_v = make_model(V_TINY)
    unet, losses = tuned(predicts_v, latent, iterations=0)
    context, t = predicts_v.encode_text(["a cat"]), torch.tensor(481)
    expected = predicts_v.steps.noise(latent, t, context)
    assert losses.shape == (0,) and torch.equal(noise(unet, latent, t, context), expected)


def test_half_precision_is_trained_in_float32(latent: Tensor) -> None:
    """A step of 1e-6 is less than what bfloat16 rounds."""
    half = make_model(dtype=torch.bfloat16)
    unet, losses = tuned(half, latent.float(), learning_rate=1e-6, learns=biases)
    assert losses.dtype == torch.float32 and half.dtype == torch.bfloat16
    for name, weight in unet.named_parameters():
        change = (weight - half.unet.get_parameter(name).float()).abs().max()
        assert weight.dtype == torch.float32 and (0 < change < 1e-5) == biases(name)


def test_the_memory_is_as_stated(latent: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []

    class Watched(torch.optim.Adam):
        def step(self) -> None:
            super().step()
            (group,) = self.param_groups
            moments = [self.state[w][name] for w in group["params"] for name in MOMENTS]
            values = [*group["params"], *(w.grad for w in group["params"]), *moments]
            held.append(sum(value.nbytes for value in values))

    MOMENTS = ("exp_avg", "exp_avg_sq")
    monkeypatch.setattr(torch.optim, "Adam", Watched)
    model = make_model(dtype=torch.float32)
    tuned(model, latent.float())
    assert held == [BYTES * sum(w.numel() for w in model.unet.parameters())] * 2

    unet = dict(skeletons(SD_V1)["unet"].named_parameters())
    whole = sum(w.numel() for w in unet.values())
    cross = sum(w.numel() for name, w in unet.items() if "cross_attention" in name)
    for count, learning, fit in ((whole, whole, Imagic.fit), (cross, cross, UniTune.fit)):
        text = " ".join((fit.__doc__ or "").split())
        assert f"{count:,}" in text and f"{BYTES} bytes" in text
        assert f"{BYTES * learning / 2**30:.1f} GiB" in text
    assert f"{4 * (whole - cross) / 2**30:.1f} GiB" in (UniTune.fit.__doc__ or "")


def test_it_learns_in_inference_mode_and_under_autocast(
    model: StableDiffusion, latent: Tensor, inversion: Inversion
) -> None:
    single = make_model(dtype=torch.float32)  # autocast leaves float64 alone
    expected, _ = tuned(single, latent.float())
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found, _ = tuned(single, latent.float())
        UniTune.fit(model, inversion, iterations=1, batch=1).edit_latents("a dog", strength=0.1)
        Imagic.fit(model, inversion, "a dog", embedding_steps=1, model_steps=1)
    pairs = zip(found.parameters(), expected.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_loss_that_overflows_names_the_iteration(latent: Tensor) -> None:
    broken = make_model()
    broken.unet.conv_out.bias.fill_(torch.inf)
    message = r"fine-tuning at iteration 1: got values that are not finite, in torch.float64"
    with pytest.raises(nti.NotFiniteError, match=message):
        tuned(broken, latent)
