"""Functions as ONNX graphs of the plain domain, whose weights lie in the file that all share."""

import json
from pathlib import Path

import onnx_ir as ir
import torch
from torch.export import ExportedProgram
from torch.nn.attention import SDPBackend

from nti.export.decompositions import ONNX_RULES
from nti.export.functions import Function
from nti.export.trace import traced

__all__ = ["onnx_program", "write_graph"]

OPSET = 18


def onnx_program(function: Function) -> ExportedProgram:
    """Trace a function to operations that ONNX has: attention as its products, no backward ones."""
    return traced(function, rules=ONNX_RULES, attention=SDPBackend.MATH)


def write_graph(program: ExportedProgram, function: Function, path: Path, weights: Path) -> None:
    """Write a graph beside its weights' file.

    Args:
        program: of `onnx_program`.
        function: whose inputs and outputs give the graph's their names.
        path: of the graph.
        weights: a safetensors file in the same folder, from which the graph's reader takes them.

    """
    made = torch.onnx.export(
        program, opset_version=OPSET, dynamo=True, verbose=False,
        # Its optimiser takes Adam's 1e-8 for zero (onnxscript 0.7.2), and drops it.
        optimize=False,
    )  # fmt: skip
    assert made is not None
    graph = made.model.graph
    _rename(graph, function)
    places = _places(weights)
    for name, value in graph.initializers.items():
        tensor = value.const_value
        if name in places and tensor is not None:
            start, shape = places[name]
            value.const_value = ir.ExternalTensor(
                weights.name, start, tensor.nbytes, tensor.dtype, shape=ir.Shape(shape),
                name=name, base_dir=path.parent,
            )  # fmt: skip
    ir.save(made.model, path)


def _places(weights: Path) -> dict[str, tuple[int, list[int]]]:
    """Return at which byte of a safetensors file each tensor begins, and its shape."""
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {
        name: (8 + length + entry["data_offsets"][0], entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _rename(graph: ir.Graph, function: Function) -> None:
    """Name inputs and outputs as the function does, and number all else.

    The exporter's own names may be those of inputs, and what it notes beside each node is where the
    code that was traced lies on this machine.
    """
    for number, node in enumerate(graph):
        node.name = f"n{number}"
        node.metadata_props.clear()
        node.doc_string = None
        for place, value in enumerate(node.outputs):
            value.name = f"n{number}.{place}"
            value.metadata_props.clear()
    for names, values in ((function.inputs, graph.inputs), (function.outputs, graph.outputs)):
        for name, value in zip(names, values, strict=True):
            value.name = name
            value.metadata_props.clear()
