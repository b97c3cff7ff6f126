"""Blocks computed again in the backward pass: the same embeddings, with less kept."""

import pytest
import torch

import nti
from nti import StableDiffusion
from tiny import make_model
from tolerances import assert_close


@pytest.fixture(scope="module")
def low() -> StableDiffusion:
    return make_model(recompute=True)


def kept(model: StableDiffusion, context: torch.Tensor) -> int:
    """Bytes that the backward pass to an embedding holds, weights aside."""
    weights = {p.data_ptr() for p in model.unet.parameters()}
    held: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            held[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.steps.noise(latent, torch.tensor(981), context.requires_grad_())
    return sum(held.values())


def test_the_inversion_is_the_same(
    low: StableDiffusion, model: StableDiffusion, image: torch.Tensor
) -> None:
    settings = {"steps": 4, "guidance_scale": 3.0, "inner_steps": 3}
    expected = nti.invert(model, image, "a cat", **settings)
    found = nti.invert(low, image, "a cat", **settings)
    assert_close(found.uncond, expected.uncond)
    assert_close(found.latents, expected.latents)


@pytest.mark.parametrize("recompute", [False, True], ids=["normal", "low"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_predicted_noise_is_differentiable_by_torch_func(
    recompute: bool, dtype: torch.dtype, any_size: None
) -> None:
    backend = "onednn" if dtype == torch.float32 else "reference"
    model = make_model(dtype=dtype, backend=backend, recompute=recompute)
    g = torch.Generator().manual_seed(0)
    latent = torch.randn(1, 4, 8, 8, generator=g, dtype=dtype)
    context = model.encode_text(["a cat"])

    def loss(context: torch.Tensor) -> torch.Tensor:
        return model.steps.noise(latent, torch.tensor(981), context).square().sum()

    found = torch.func.grad(loss)(context)
    leaf = context.requires_grad_()
    assert_close(found, torch.autograd.grad(loss(leaf), leaf)[0])


@pytest.mark.parametrize("memory", ["normal", "low"])
def test_inference_mode_of_the_caller_is_no_obstacle(
    image: torch.Tensor, memory: str, any_size: None
) -> None:
    def run() -> torch.Tensor:
        model = nti.load_model(device="cpu", memory=memory)
        settings = {"steps": 2, "inner_steps": 2}
        return nti.invert(model, image.float(), "a red circle", **settings).uncond

    expected = run()
    with torch.inference_mode():
        assert_close(run(), expected)


def test_less_than_half_is_kept(low: StableDiffusion, model: StableDiffusion) -> None:
    context = model.encode_text(["a cat"])
    assert kept(low, context.clone()) < 0.5 * kept(model, context.clone())


def test_the_model_is_loaded_with_it() -> None:
    assert nti.load_model(device="cpu", memory="low").unet.recompute
    assert not nti.load_model(device="cpu").unet.recompute
    with pytest.raises(ValueError, match="memory: got 'tiny', expected one of normal, low"):
        nti.load_model(memory="tiny")
