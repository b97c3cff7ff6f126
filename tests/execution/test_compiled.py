from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.torch_version import TorchVersion

from nti import Inversion, StableDiffusion, edit, invert, reconstruct
from nti.execution.compiled import _CompiledStep, compiles
from nti.image import load_image
from tiny import make_model
from tolerances import assert_close

needs_tracing = pytest.mark.skipif(not compiles(), reason="needs PyTorch 2.11")

TIGER, SMALL = "a tiger sitting next to a mirror", "a small cat sitting next to a mirror"


@pytest.fixture
def counter() -> Iterator[CompileCounterWithBackend]:
    torch._dynamo.reset()
    yield CompileCounterWithBackend("eager")
    torch._dynamo.reset()


@needs_tracing
def test_an_inversion_compiles_each_step_once(
    model: StableDiffusion, image: torch.Tensor, counter: CompileCounterWithBackend
) -> None:
    compiled = model.with_execution("compiled", compiler=counter)
    settings = {"steps": 3, "guidance_scale": 3.0, "inner_steps": 2}
    made = invert(compiled, image, "a cat", **settings)
    # The noise, of the pivot and of the optimization, and the inner iteration.
    assert counter.frame_count == 2
    again = invert(compiled, image.flip(3), "two dogs", **(settings | {"guidance_scale": 5.0}))
    assert counter.frame_count == 2
    assert_close(made.uncond, invert(model, image, "a cat", **settings).uncond)
    plain = load_image(reconstruct(model, again), 64)
    assert torch.equal(load_image(reconstruct(compiled, again), 64), plain)
    assert counter.frame_count == 3


@needs_tracing
def test_every_edit_of_so_many_prompts_is_one_graph(
    model: StableDiffusion, inversion: Inversion, counter: CompileCounterWithBackend
) -> None:
    """With and without blend, inside the windows and after them: one layout of the batch."""
    compiled = model.with_execution("compiled", compiler=counter)
    for settings in (
        {"cross_replace": 0.4, "self_replace": (0.2, 0.3)},
        {"blend": ("cat", "tiger")},
    ):
        found = edit(compiled, inversion, TIGER, **settings)
        assert counter.frame_count == 1
        assert_close(found.latents, edit(model, inversion, TIGER, **settings).latents)


@needs_tracing
def test_as_many_shapes_as_one_likes_are_compiled(counter: CompileCounterWithBackend) -> None:
    """torch.compile keeps eight graphs for the code of a function, and fails at the ninth."""

    def grown(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    step = _CompiledStep(grown, counter, replays=False)
    for rows in range(1, 14):
        assert step(torch.zeros(rows)).tolist() == [1.0] * rows
        assert counter.frame_count == rows
    step(torch.zeros(5))
    assert counter.frame_count == 13
    alone = torch.compile(grown, fullgraph=True, dynamic=False, backend=counter)
    with pytest.raises(Exception, match="recompile|fullgraph"):
        for rows in range(1, 14):
            alone(torch.zeros(rows))


@needs_tracing
def test_compiling_again_begins_with_the_plain_steps(model: StableDiffusion) -> None:
    compiled = model.with_execution("compiled")
    with pytest.raises(ValueError, match="compiler: got 'nonsense', expected one of"):
        compiled.with_execution("compiled", compiler="nonsense")
    again = compiled.with_execution("compiled", compiler="aot_eager")
    assert again.steps.noise is not compiled.steps.noise
    assert compiled.unet is again.unet is model.unet
    assert again.with_execution("eager").steps.execution == "eager"


@needs_tracing
def test_blocks_that_are_computed_again_are_refused_as_they_cannot_be_traced() -> None:
    with pytest.raises(ValueError, match="memory='low'.* load it with memory='normal'"):
        make_model(recompute=True).with_execution("compiled")


def test_an_older_pytorch_is_refused(
    model: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.10.1+cu128"))
    with pytest.raises(ValueError, match=r"torch: got 2\.10\.1\+cu128, expected 2\.11 or newer"):
        model.with_execution("compiled")
    for version in ("2.11.0a0+git", "2.11.0", "3.0.0"):
        monkeypatch.setattr(torch, "__version__", TorchVersion(version))
        assert compiles()
