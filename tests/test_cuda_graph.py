"""Steps recorded as CUDA graphs; on the CPU by a stand-in that reads and writes the same memory."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nti import Inversion, StableDiffusion, compile_model, edit, invert, load_model, reconstruct
from nti.compilation import CompiledModel, recorded
from nti.config import SD_V1
from nti.cuda_graph import CudaGraph
from nti.demo import psnr, sample_captions, sample_image
from nti.image import load_image
from nti.networks.attention import set_backend
from nti.networks.control import AttentionControl
from nti.networks.unet import UNet
from nti.sampling.step import AdamState
from tiny import make_model

NAME = "purple-circle"


def leaves(value: Any) -> list[torch.Tensor | None]:
    if value is None or isinstance(value, torch.Tensor):
        return [value]
    parts = value if isinstance(value, tuple) else vars(value).values()
    return [leaf for part in parts for leaf in leaves(part)]


def rerun(
    function: Callable[..., Any], arguments: tuple[Any, ...]
) -> tuple[Callable[[], None], Any]:
    """A recording whose replay reads `arguments` where they were and overwrites its results."""
    results = function(*arguments)

    def replay() -> None:
        for place, value in zip(leaves(results), leaves(function(*arguments)), strict=True):
            if place is not None:
                place.copy_(value)

    return replay, results


def test_a_graph_reads_new_arguments_and_is_recorded_once_for_each_shape() -> None:
    calls = []

    def recorder(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, Any]:
        calls.append(arguments)
        return rerun(function, arguments)

    graph = CudaGraph(lambda x, pair: x + pair[0] if pair[1] is None else x + pair[1], recorder)
    one, two = torch.ones(3), torch.full((3,), 2.0)
    assert torch.equal(graph(one, (one, None)), torch.full((3,), 2.0))
    assert torch.equal(graph(two, (one, None)), torch.full((3,), 3.0))
    assert len(calls) == 1
    assert torch.equal(graph(two, (one, two)), torch.full((3,), 4.0))
    assert torch.equal(graph(torch.ones(2), (torch.ones(2), None)), torch.full((2,), 2.0))
    assert len(calls) == 3
    assert torch.equal(one, torch.ones(3)) and torch.equal(two, torch.full((3,), 2.0))


def test_a_number_is_refused_as_it_would_be_frozen_into_the_graph() -> None:
    with pytest.raises(TypeError, match="got float"):
        CudaGraph(torch.add, rerun)(torch.ones(1), 2.0)


def test_a_recorded_model_does_as_the_model(
    model: StableDiffusion, image: torch.Tensor, inversion: Inversion
) -> None:
    """Every argument of every step is a tensor, and no result is read after the next call."""
    graphs = CompiledModel(model, partial(CudaGraph, recorder=rerun))
    settings = {"steps": 3, "guidance_scale": 3.0, "inner_steps": 2}
    made, plain = (
        invert(graphs, image, "a cat", **settings),
        invert(model, image, "a cat", **settings),
    )
    assert torch.equal(made.uncond, plain.uncond) and torch.equal(made.latents, plain.latents)
    tiger = "a tiger sitting next to a mirror"
    images = [load_image(reconstruct(m, plain), 64) for m in (graphs, model)]
    assert torch.equal(*images)
    found, expected = edit(graphs, inversion, tiger), edit(model, inversion, tiger)
    assert torch.equal(found.latents, expected.latents)


def test_what_there_is_no_memory_to_record_runs_as_it_is_unless_the_graph_is_required() -> None:
    calls = []

    def refuse(*arguments: Any) -> Any:
        calls.append(arguments)
        raise torch.OutOfMemoryError("no memory left")

    ones = torch.ones(2)
    graph = CudaGraph(torch.add, refuse, required=False)
    with pytest.warns(UserWarning, match=r"no memory to record this step \(no memory left\)"):
        assert torch.equal(graph(ones, ones), 2 * ones)
    assert torch.equal(graph(ones, 2 * ones), 3 * ones)
    assert len(calls) == 1, "it is not tried again"
    with pytest.raises(torch.OutOfMemoryError):
        CudaGraph(torch.add, refuse)(ones, ones)

    def broken(*_: Any) -> Any:
        raise RuntimeError("capture")

    with pytest.raises(RuntimeError, match="capture"):
        CudaGraph(torch.add, broken, required=False)(ones, ones)


def test_an_inversion_records_its_steps(
    model: StableDiffusion, image: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"steps": 3, "guidance_scale": 3.0, "inner_steps": 2}
    plain = invert(model, image, "a cat", **settings)
    calls = []

    def recorder(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, Any]:
        calls.append(function)
        return rerun(function, arguments)

    def on_cuda(given: StableDiffusion) -> StableDiffusion:
        return CompiledModel(given, partial(CudaGraph, recorder=recorder, required=False))

    monkeypatch.setattr("nti.inversion.invert.recorded", on_cuda)
    made = invert(model, image, "a cat", **settings)
    assert calls == [model.finish, model.null_text_iteration]
    assert torch.equal(made.uncond, plain.uncond) and torch.equal(made.latents, plain.latents)


def test_only_an_eager_model_on_cuda_that_allows_it_is_recorded_by_itself(
    model: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert recorded(model) is model
    monkeypatch.setattr(StableDiffusion, "device", torch.device("cuda"))
    by_itself = recorded(model)
    assert isinstance(by_itself, CompiledModel) and by_itself.unet is model.unet
    assert not by_itself._iteration.required  # type: ignore[attr-defined]
    assert recorded(by_itself) is by_itself
    monkeypatch.setattr(StableDiffusion, "cuda_graph", False)
    assert recorded(model) is model


def test_a_recorded_model_leaves_the_networks_as_they_are() -> None:
    model = make_model()
    model.unet.train()
    model.unet.conv_in.weight.requires_grad_()
    graphs = CompiledModel(model, partial(CudaGraph, recorder=rerun))
    assert model.unet.training and model.unet.conv_in.weight.requires_grad
    assert graphs.unet is model.unet and graphs.config is model.config


class OnDevice(TorchDispatchMode):
    """Refuse an op that reads or makes a tensor anywhere but on the meta device.

    A number read back (`item`) PyTorch refuses there by itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, op: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = op(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
        assert {x.device.type for x in tensors} <= {"meta"}, op.name()
        self.count += 1
        return out


@pytest.mark.parametrize("memory", ["normal", "low"])
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_what_is_recorded_stays_on_the_device(backend: str, memory: str) -> None:
    """A graph cannot hold a copy from the host, nor wait for a number; meta stands for CUDA."""
    if backend == "triton":
        pytest.importorskip("triton")

    def recorder(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, Any]:
        with OnDevice() as mode:
            results = function(*arguments)
        counts.append(mode.count)
        return lambda: None, results

    counts: list[int] = []
    with torch.device("meta"):
        unet = UNet(SD_V1.unet).half()
        latent, context = torch.empty(1, 4, 64, 64), torch.empty(1, 77, 768)
        active = torch.ones(1, dtype=torch.bool)
        rows, mix = torch.arange(3), torch.empty(1, 77, 77)
        control = AttentionControl(rows[:1], mix, mix[:, 0], rows, torch.empty(2, 77, 2))
    unet.recompute = memory == "low"
    set_backend(unet, backend)
    rest: Any = torch.nn.Identity()
    model = StableDiffusion(SD_V1, unet, rest, rest, rest)
    graphs = CompiledModel(model, partial(CudaGraph, recorder=recorder))
    step = model.schedule(50).coefficients(0)
    begun, adam = model.begin(latent, 981), AdamState.fresh(context)
    numbers = step, 7.5, 1e-2, active
    graphs.null_text_iteration(begun, context, adam, latent, latent, latent, *numbers)
    graphs.finish(begun, context)
    graphs.guided_step(latent, 981, context, context, step, 7.5)
    _, maps = graphs.predict_noise_controlled(
        latent.expand(3, -1, -1, -1), 981, context.expand(3, -1, -1), control
    )
    assert maps is not None and maps.shape == (2, 2, 16, 16)
    assert len(counts) == 4 and min(counts) > 300, "each of the four is a whole network"


def test_it_is_refused_on_the_cpu(model: StableDiffusion) -> None:
    with pytest.raises(ValueError, match="backend: got 'cuda-graph' on cpu"):
        compile_model(model, backend="cuda-graph")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.filterwarnings("error:.*CUDA [gG]raph")  # neither an empty graph nor none
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["f32", "f16"])
def test_on_cuda_a_recorded_iteration_is_the_eager_one(dtype: torch.dtype) -> None:
    model = load_model(device="cuda", dtype=dtype)
    graphs = recorded(model)
    assert isinstance(graphs, CompiledModel)
    for seed in range(3):  # recorded with the first
        g = torch.Generator("cuda").manual_seed(seed)
        latent, eps, target = torch.randn(3, 1, 4, 16, 16, generator=g, device="cuda")
        context = torch.randn(1, 77, model.config.unet.context_dim, generator=g, device="cuda")
        step = model.schedule(50).coefficients(seed)
        active = torch.ones(1, dtype=torch.bool, device="cuda")
        given = context, AdamState.fresh(context), latent, eps, target, step, 3.0, 1e-2, active
        begun = model.begin(latent, 981)
        (_, made, loss), (_, plain, expected) = (
            m.null_text_iteration(begun, *given) for m in (graphs, model)
        )
        bound = 1e-4 if dtype == torch.float32 else 2e-2
        assert (made.mean - plain.mean).norm() < bound * plain.mean.norm()
        assert torch.allclose(loss, expected, rtol=bound)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_what_cannot_be_recorded_says_what_to_do() -> None:
    """In a process of its own, as PyTorch before 2.15 does not recover from a broken recording."""
    code = (
        "import torch; from nti.cuda_graph import record\n"
        "record(lambda x: x.sum().item(), (torch.ones(3, device='cuda'),))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode and "leave it eager" in done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.filterwarnings("error:.*CUDA [gG]raph")
def test_on_cuda_a_recorded_inversion_comes_back_as_the_eager_one() -> None:
    source = load_image(sample_image(NAME), 128)
    decibels = []
    for cuda_graph in (True, False):
        model = load_model(device="cuda", cuda_graph=cuda_graph)
        made = invert(model, source, sample_captions()[NAME], steps=5, inner_steps=3)
        decibels.append(psnr(load_image(reconstruct(model, made), 128), source))
    assert abs(decibels[0] - decibels[1]) < 0.1
