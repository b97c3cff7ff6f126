"""ONNX graphs of a tiny model compute what it does, with Adam's epsilon, and tell nothing else."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from nti import StableDiffusion
from nti.export.check import differences
from nti.export.exported import Exported, load_exported
from nti.export.manifest import file_entry, read_manifest, write_manifest
from nti.sampling.step import EPSILON

ROOT = Path(__file__).parents[2]


def test_every_output_of_every_function_fits(small: StableDiffusion, exported: Exported) -> None:
    found = list(differences(small, exported))
    assert {each.function for each in found} == exported.manifest.functions.keys()
    assert [each for each in found if not each.fits] == []


def test_a_graph_holds_no_weights_and_no_place_of_the_machine(folder: Path) -> None:
    for path in folder.glob("*.onnx"):
        graph = onnx.load(path, load_external_data=False).graph
        assert {node.domain for node in graph.node} == {""}
        inside = [x for x in graph.initializer if not x.external_data and len(x.dims) > 1]
        assert inside == []
        assert str(ROOT).encode() not in path.read_bytes()
        assert b"site-packages" not in path.read_bytes()


def test_attention_looks_for_no_row_that_is_masked_whole(folder: Path) -> None:
    """PyTorch's own rule does, which took a tenth of an iteration by onnxruntime."""
    graph = onnx.load(folder / "iteration.onnx", load_external_data=False).graph
    kinds = {node.op_type for node in graph.node}
    assert "Softmax" in kinds and "ReduceMin" not in kinds


def constants(graph: onnx.GraphProto) -> list[tuple[int, float]]:
    found = []
    for number, node in enumerate(graph.node):
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            value = numpy_helper.to_array(node.attribute[0].t)
            if value.size == 1 and value.dtype == np.float32:
                found.append((number, float(value.reshape(()))))
    return found


def test_adams_epsilon_is_there_and_the_check_sees_it_missing(
    small: StableDiffusion, folder: Path, tmp_path: Path
) -> None:
    """The exporter's own optimiser takes 1e-8 for zero. Loss and gradient are right without it."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    model = onnx.load(folder / "iteration.onnx", load_external_data=False)
    epsilons = [n for n, value in constants(model.graph) if np.isclose(value, EPSILON, rtol=1e-3)]
    assert epsilons
    for number in epsilons:
        tensor = model.graph.node[number].attribute[0].t
        zero = np.zeros_like(numpy_helper.to_array(tensor))
        tensor.CopyFrom(numpy_helper.from_array(zero, tensor.name))
    damaged = tmp_path / "iteration.onnx"
    onnx.save(model, damaged)
    manifest = read_manifest(folder)
    manifest.files["iteration.onnx"] = file_entry(damaged)
    write_manifest(manifest, tmp_path)
    found = {
        each.output: each
        for each in differences(small, load_exported(tmp_path, "onnx"))
        if each.function == "iteration"
    }
    assert found["losses"].fits and found["new_mean"].fits
    assert not found["new_uncond"].fits


@pytest.mark.parametrize("name", ["noise", "iteration"])
def test_inputs_may_lie_in_any_order(exported: Exported, name: str) -> None:
    g = torch.Generator().manual_seed(0)
    ports = exported.manifest.functions[name].inputs
    inputs = [
        torch.rand(port.shape, generator=g)
        if port.dtype == "float32"
        else torch.ones(port.shape, dtype=getattr(torch, port.dtype))
        for port in ports
    ]
    turned = [x.mT.contiguous().mT if x.ndim > 1 else x for x in inputs]
    assert not all(x.is_contiguous() for x in turned)
    for ours, theirs in zip(exported(name, *turned), exported(name, *inputs), strict=True):
        assert torch.equal(ours, theirs)
