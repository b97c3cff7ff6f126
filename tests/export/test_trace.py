"""A traced function is the function, its weights aside."""

from collections import Counter

import pytest
import torch
from torch import nn

from nti import StableDiffusion
from nti.export.functions import FUNCTIONS, Function, functions_of
from nti.export.trace import stored_weights, traced
from tiny import V_TINY, make_model


def assert_same(function: Function) -> None:
    """The same to the last bit, on other inputs than it was traced with."""
    program = traced(function).module()
    inputs = [0.9 * x if x.is_floating_point() else x.clone() for x in function.inputs.values()]
    with torch.no_grad():
        expected = function.module(*inputs)
    for ours, theirs in zip(program(*inputs), expected, strict=True):
        assert ours.is_contiguous() and torch.equal(ours, theirs)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_gives_the_same_numbers(functions: dict[str, Function], name: str) -> None:
    assert_same(functions[name])


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("name", ["controlled", "iteration"])
def test_onednn_s_products_are_recorded(small: StableDiffusion, name: str) -> None:
    """They give the same numbers as eager steps by oneDNN, and the reference's but for rounding."""
    found, plain = (
        {each.name: each for each in functions_of(small, (64, 64), 1, 1, backend=backend)}[name]
        for backend in ("onednn-products", "reference")
    )
    assert_same(found)
    of_found, of_plain = (
        Counter(str(node.target) for node in traced(each).graph.nodes) for each in (found, plain)
    )
    assert of_found["mkldnn._linear_pointwise.default"] > 0
    assert of_found["aten.convolution.default"] < of_plain["aten.convolution.default"]
    with torch.no_grad():
        for ours, theirs in zip(
            *(each.module(*plain.inputs.values()) for each in (found, plain)), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_a_model_that_predicts_v_is_traced_too() -> None:
    made = functions_of(make_model(V_TINY, torch.float32), (64, 64), 1, 1)
    for function in made:
        if function.name in ("noise", "iteration"):
            assert_same(function)


def test_inputs_need_not_lie_row_by_row(functions: dict[str, Function]) -> None:
    function = functions["noise"]
    program = traced(function).module()
    latent, timestep, context = function.inputs.values()
    turned = latent.to(memory_format=torch.channels_last)
    assert not turned.is_contiguous()
    for ours, theirs in zip(
        program(turned, timestep, context), program(latent, timestep, context), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kernel", [1, 3])
def test_weights_are_stored_as_they_lie(kernel: int) -> None:
    plain = nn.Conv2d(4, 6, kernel)
    turned = nn.Conv2d(4, 6, kernel).to(memory_format=torch.channels_last)
    shapes = {"plain": (6, 4, kernel, kernel), "turned": (6, kernel, kernel, 4)}
    stored = stored_weights(nn.ModuleDict({"plain": plain, "turned": turned}))
    for name, shape in shapes.items():
        weight = stored[f"{name}.weight"]
        assert tuple(weight.shape) == shape
        assert weight.stride() == torch.empty(shape).stride()
    assert stored["turned.weight"].data_ptr() == turned.weight.data_ptr()  # nothing was copied
    assert torch.equal(stored["turned.weight"].permute(0, 3, 1, 2), turned.weight)


def test_no_weight_is_kept_in_the_graph(functions: dict[str, Function]) -> None:
    """All are found by name, so one file serves every function."""
    function = functions["iteration"]
    program = traced(function)
    names = {name.removeprefix("_") for name in program.state_dict}
    assert names == stored_weights(function.module).keys()
    assert not program.constants
