"""Steps recorded as CUDA graphs; on the CPU by a stand-in that reads and writes the same memory."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from nti import Inversion, StableDiffusion, compile_model, edit, invert, load_model, reconstruct
from nti.compilation import CompiledModel, recorded
from nti.cuda_graph import CudaGraph
from nti.demo import sample_captions, sample_image
from nti.image import load_image
from tolerances import assert_close

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


def out_of_memory(*_: Any) -> Any:
    raise torch.OutOfMemoryError("no memory left")


def test_what_cannot_be_recorded_runs_as_it_is_unless_the_graph_is_required() -> None:
    calls = []

    def refuse(*arguments: Any) -> Any:
        calls.append(arguments)
        return out_of_memory()

    ones = torch.ones(2)
    graph = CudaGraph(torch.add, refuse, required=False)
    with pytest.warns(UserWarning, match=r"could not record this step \(no memory left\)"):
        assert torch.equal(graph(ones, ones), 2 * ones)
    assert torch.equal(graph(ones, 2 * ones), 3 * ones)
    assert len(calls) == 1, "it is not tried again"
    with pytest.raises(torch.OutOfMemoryError):
        CudaGraph(torch.add, refuse)(ones, ones)


def test_an_inversion_records_its_iteration_unless_told_not_to(
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
    assert calls == [model.null_text_iteration]
    assert torch.equal(made.uncond, plain.uncond) and torch.equal(made.latents, plain.latents)
    invert(model, image, "a cat", cuda_graph=False, **settings)
    assert len(calls) == 1


def test_only_an_eager_model_on_cuda_is_recorded_by_itself(
    model: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert recorded(model) is model
    monkeypatch.setattr(StableDiffusion, "device", torch.device("cuda"))
    by_itself = recorded(model)
    assert isinstance(by_itself, CompiledModel) and by_itself.unet is model.unet
    assert not by_itself._iteration.required  # type: ignore[attr-defined]
    assert recorded(by_itself) is by_itself


def test_it_is_refused_on_the_cpu(model: StableDiffusion) -> None:
    with pytest.raises(ValueError, match="backend: got 'cuda-graph' on cpu"):
        compile_model(model, backend="cuda-graph")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.filterwarnings("error:CUDA graph")  # it has to be recorded, not to run without
def test_on_cuda_a_recorded_inversion_is_the_eager_one() -> None:
    model = load_model(device="cuda", dtype=torch.float32)
    source = load_image(sample_image(NAME), 128)
    plain, by_itself, whole = (
        invert(m, source, sample_captions()[NAME], steps=5, inner_steps=3, cuda_graph=graph)
        for m, graph in (
            (model, False),
            (model, True),
            (compile_model(model, backend="cuda-graph"), True),
        )
    )
    assert_close(by_itself.uncond, plain.uncond)
    assert_close(whole.uncond, plain.uncond)
