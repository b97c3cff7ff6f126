"""Each step is one graph, compiled once, whatever the timestep, the image and the numbers are.

The graphs are traced and run as they are: code generation takes minutes and is benchmarked.
"""

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.torch_version import TorchVersion

from nti import Inversion, StableDiffusion, edit, invert, reconstruct
from nti.compilation import CompiledModel, compile_model, compiles
from nti.image import load_image
from tolerances import assert_close

needs_tracing = pytest.mark.skipif(not compiles(), reason="needs PyTorch 2.11")


@pytest.fixture
def counter() -> Iterator[CompileCounterWithBackend]:
    torch._dynamo.reset()
    yield CompileCounterWithBackend("eager")
    torch._dynamo.reset()


@needs_tracing
def test_an_inversion_compiles_each_step_once(
    model: StableDiffusion, image: torch.Tensor, counter: CompileCounterWithBackend
) -> None:
    compiled = compile_model(model, backend=counter)
    settings = {"steps": 3, "guidance_scale": 3.0, "inner_steps": 2}
    made = invert(compiled, image, "a cat", **settings)
    # The pivot's noise and the inner iteration.
    assert counter.frame_count == 2
    again = invert(compiled, image.flip(3), "two dogs", **(settings | {"guidance_scale": 5.0}))
    assert counter.frame_count == 2
    assert_close(made.uncond, invert(model, image, "a cat", **settings).uncond)
    plain = load_image(reconstruct(model, again), 64)
    assert torch.equal(load_image(reconstruct(compiled, again), 64), plain)
    assert counter.frame_count == 3


@needs_tracing
def test_an_edit_compiles_its_controlled_step_once(
    model: StableDiffusion, inversion: Inversion, counter: CompileCounterWithBackend
) -> None:
    prompt = "a tiger sitting next to a mirror"
    compiled = compile_model(model, backend=counter)
    settings = {"cross_replace": 1.0, "self_replace": (0.2, 0.6)}
    found = edit(compiled, inversion, prompt, **settings)
    assert counter.frame_count == 1
    assert_close(found.latents, edit(model, inversion, prompt, **settings).latents)
    edit(compiled, inversion, "a dog sitting next to a window", **settings)
    assert counter.frame_count == 1


@needs_tracing
def test_compiling_twice_is_compiling_once(model: StableDiffusion) -> None:
    compiled = compile_model(model)
    assert isinstance(compiled, CompiledModel) and compile_model(compiled) is compiled
    assert compiled.unet is model.unet


def test_an_older_pytorch_is_refused(
    model: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.10.1+cu128"))
    with pytest.raises(ValueError, match=r"torch: got 2\.10\.1\+cu128, expected 2\.11 or newer"):
        compile_model(model)
    for version in ("2.11.0a0+git", "2.11.0", "3.0.0"):
        monkeypatch.setattr(torch, "__version__", TorchVersion(version))
        assert compiles()
