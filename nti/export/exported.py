"""An exported folder in Python: to check it, to measure it, and to run the algorithms on it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from nti.arguments import a_choice
from nti.export.manifest import (
    WEIGHTS,
    ExportError,
    FunctionEntry,
    Manifest,
    Port,
    file_entry,
    instructions,
    read_manifest,
)
from nti.fingerprint import NETWORKS, Fingerprint

__all__ = ["Exported", "load_exported"]

Run = Callable[[list[Tensor]], list[Tensor]]


@dataclass(frozen=True, eq=False)
class Exported:
    """The functions of a folder."""

    manifest: Manifest
    fingerprint: Fingerprint
    """Of the model that was exported."""
    runs: Mapping[str, Run]
    """By name."""

    def __call__(self, name: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run a function.

        Args:
            name: of the function.
            inputs: in the manifest's order, of its shapes and dtypes. What is not contiguous is
                copied.

        Raises:
            ExportError: a function that is not there, or other inputs; at the first call of a graph
            of onnxruntime also a folder that was written anew since it was loaded.

        """
        if name not in self.runs:
            raise ExportError(f"function: got {name!r}, expected one of {', '.join(self.runs)}")
        ports = self.manifest.functions[name].inputs
        if len(inputs) != len(ports):
            names = ", ".join(port.name for port in ports)
            raise ExportError(f"{name}: got {len(inputs)} inputs, expected {len(ports)}: {names}")
        for port, tensor in zip(ports, inputs, strict=True):
            _check(f"{name}: {port.name}", tensor, port)
        return tuple(self.runs[name]([tensor.contiguous() for tensor in inputs]))


def load_exported(
    folder: str | Path, format: str = "aoti", *, threads: int | None = None
) -> Exported:
    """Load the functions of a folder.

    Packages share the weights. onnxruntime takes them into a layout of its own for each graph, so a
    graph is loaded when it is first called. Until then the folder has to stay as it is.

    Args:
        folder: that `nti.export.export` has written.
        format: `aoti` or `onnx`.
        threads: of onnxruntime; None: as many as PyTorch takes. Packages take PyTorch's.

    Raises:
        ExportError: a folder that is none or unfinished, files that have changed, packages for
        another PyTorch or processor, weights that are not laid out as the manifest says.

    """
    folder = Path(folder).absolute()
    a_choice("format", format, ("aoti", "onnx"))
    manifest = read_manifest(folder)
    entries = manifest.functions
    if lacking := [name for name, entry in entries.items() if format not in entry.files]:
        raise ExportError(
            f"{folder}: got no {format} of {', '.join(lacking)}, expected all: export anew with"
            f" --format {format}"
        )
    _check_files(folder, manifest)
    load = _packages if format == "aoti" else _graphs
    return Exported(manifest, _fingerprint(folder, manifest), load(folder, manifest, threads))


def _fingerprint(folder: Path, manifest: Manifest) -> Fingerprint:
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        samples = {name: file.get_tensor(f"fingerprint.{name}") for name in NETWORKS}
    return Fingerprint(samples, manifest.inversion["networks"])


def _check_files(folder: Path, manifest: Manifest) -> None:
    """Raise ExportError for a file that is not as it was written."""
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise ExportError(f"{path}: no such file, expected one of the export: export anew")
        if (found := file_entry(path)) != expected:
            raise ExportError(
                f"{path}: got {found['bytes']} bytes of SHA-256 {found['sha256'][:12]}, expected"
                f" {expected['bytes']} of {expected['sha256'][:12]}: it was changed, export anew"
            )


def _packages(folder: Path, manifest: Manifest, threads: int | None) -> dict[str, Run]:
    from nti.export.aoti import load_package

    made = manifest.versions.get("torch")
    if made != torch.__version__:
        raise ExportError(
            f"{folder}: got packages made for torch {made}, expected {torch.__version__}, which is"
            " here: export with this PyTorch"
        )
    if lacking := sorted(set(manifest.instructions) - set(instructions())):
        raise ExportError(
            f"{folder}: got packages made for a processor with {lacking[0]}, which this one does"
            " not have: export on this machine"
        )
    weights = load_file(folder / WEIGHTS, device=manifest.device)
    if weights.keys() != manifest.weights.keys():
        raise ExportError(f"{folder / WEIGHTS}: got other tensors than the manifest: export anew")
    for name, port in manifest.weights.items():
        _check(f"{WEIGHTS}: {name}", weights[name], port)

    def load(entry: FunctionEntry) -> Run:
        package = load_package(folder / entry.files["aoti"], weights)

        def run(inputs: list[Tensor]) -> list[Tensor]:
            with torch.no_grad():
                return list(package(*inputs))

        return run

    return {name: load(entry) for name, entry in manifest.functions.items()}


def _graphs(folder: Path, manifest: Manifest, threads: int | None) -> dict[str, Run]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()

    def load(entry: FunctionEntry) -> Run:
        names = [port.name for port in entry.inputs]
        graph, weights = folder / entry.files["onnx"], folder / WEIGHTS
        written, one_at_once = (_written(graph), _written(weights)), Lock()

        @cache
        def session() -> Any:
            if (_written(graph), _written(weights)) != written:
                raise ExportError(
                    f"{graph}: it or {WEIGHTS} was written anew since the folder was loaded: load"
                    " it again"
                )
            return onnxruntime.InferenceSession(
                str(graph), options, providers=["CPUExecutionProvider"]
            )

        def run(inputs: list[Tensor]) -> list[Tensor]:
            given = {n: x.detach().numpy() for n, x in zip(names, inputs, strict=True)}
            with one_at_once:
                loaded = session()
            return [torch.from_numpy(x) for x in loaded.run(None, given)]

        return run

    return {name: load(entry) for name, entry in manifest.functions.items()}


def _written(path: Path) -> int | None:
    """Return when a file was written, in ns; None where there is none."""
    return path.stat().st_mtime_ns if path.exists() else None


def _check(what: str, tensor: Tensor, port: Port) -> None:
    """Raise ExportError for a tensor that is not what a port takes."""
    found = Port.of(port.name, tensor)
    if found != port:
        raise ExportError(
            f"{what}: got {found.dtype} {tuple(found.shape)}, expected {port.dtype}"
            f" {tuple(port.shape)} with strides {tuple(port.strides)}, as was exported"
        )
