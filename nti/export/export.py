"""A model as a folder that a runtime loads: its functions, its weights once, and a manifest."""

import os
import shutil
from collections.abc import Sequence
from importlib import import_module, metadata
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from nti.arguments import a_choice, a_whole_number, shown
from nti.errors import Callback, report
from nti.export.functions import FUNCTIONS, Function, functions_of
from nti.export.manifest import (
    BLEND,
    FORMAT,
    NAME,
    WEIGHTS,
    ExportError,
    FunctionEntry,
    Manifest,
    Port,
    file_entry,
    function_entry,
    instructions,
    inversion_header,
    is_export,
    optimization,
    schedule_tables,
    write_manifest,
)
from nti.export.trace import stored_weights
from nti.files import part_folder
from nti.inversion.methods import METHODS
from nti.inversion.provenance import describe_versions
from nti.inversion.settings import InversionSettings
from nti.kernels.backend import provides
from nti.model import StableDiffusion

__all__ = ["FORMATS", "export"]

FORMATS = ("aoti", "onnx")

SUFFIXES = {"aoti": ".pt2", "onnx": ".onnx"}

FINGERPRINT = "fingerprint."
"""What the names of a fingerprint's tensors begin with, which are no weights of a function."""


def export(
    model: StableDiffusion,
    folder: str | Path,
    *,
    size: int | tuple[int, int] | None = None,
    batch: int = 1,
    edits: int = 1,
    steps: int = 50,
    formats: Sequence[str] = ("aoti",),
    only: Sequence[str] = FUNCTIONS,
    callback: Callback | None = None,
) -> Manifest:
    """Write the functions of `nti.export.functions` for one shape of their arguments.

    Args:
        model: any, in eager execution or not. Packages have oneDNN's products where its backend
            is `onednn`; the project's own kernels by Triton are left out.
        folder: a new one, or one that holds an earlier export, which is replaced at the end.
        size: (width, height) of the image in pixels, or the side of a square; None: the model's.
        batch: B images at once.
        edits: E edits at once.
        steps: T timesteps, for the manifest's tables alone.
        formats: `aoti`, packages for libtorch on this processor, which take a minute each; `onnx`.
        only: some of the functions, for a runtime that needs no others.
        callback: called with (functions written, functions in all); see `nti.errors.Callback`.

    Returns:
        The manifest.

    Raises:
        ValueError: settings that do not fit; a folder that holds something else.
        ModuleNotFoundError: `onnx` without the extra `export`.
        Stopped: by the callback.

    """
    model.check_takes_latents_alone("export it")
    chosen = [a_choice("formats", each, FORMATS) for each in formats]
    if not chosen:
        raise ValueError(f"formats: got none, expected some of {', '.join(FORMATS)}")
    wanted = [a_choice("only", each, FUNCTIONS) for each in only]
    if not wanted:
        raise ValueError(f"only: got none, expected some of {', '.join(FUNCTIONS)}")
    if model.unet.recompute:
        raise ValueError(
            "model: got one with memory='low', whose blocks cannot be traced, expected 'normal'"
        )
    shape = _size(model, size)
    batch, edits = (a_whole_number(n, v, 1, 256) for n, v in (("batch", batch), ("edits", edits)))
    settings = InversionSettings(steps=steps)
    model.schedule(settings.steps)  # too many steps show before the work
    target = _replaceable(Path(folder))
    if "onnx" in chosen:
        import_module("nti.export.onnx")  # what is missing shows before the work
    with part_folder(target) as part:
        made = _write_all(model, part, shape, batch, edits, settings, chosen, wanted, callback)
        if target.exists():
            shutil.rmtree(target)
        part.rename(target)
    return made


def _write_all(
    model: StableDiffusion,
    folder: Path,
    size: tuple[int, int],
    batch: int,
    edits: int,
    settings: InversionSettings,
    formats: Sequence[str],
    wanted: Sequence[str],
    callback: Callback | None,
) -> Manifest:
    """Write the weights, the graphs, and the manifest at last."""
    by_name = {each.name: each for each in functions_of(model, size, batch, edits)}
    functions = [each for name, each in by_name.items() if name in wanted]
    # oneDNN is a part of libtorch, and multiplies faster than what a package has else.
    packaged = "onednn-products" if provides(model.unet.backend, "linear") else "reference"
    sources = {
        "aoti": {x.name: x for x in functions_of(model, size, batch, edits, backend=packaged)},
        "onnx": by_name,
    }
    weights: dict[str, Tensor] = {}
    for function in functions:
        weights |= stored_weights(function.module)
    samples = {FINGERPRINT + name: x for name, x in model.fingerprint.samples.items()}
    save_file({**weights, **samples}, folder / WEIGHTS)
    (folder / WEIGHTS).chmod(folder.stat().st_mode & 0o666)  # save_file lets nobody else read it
    entries: dict[str, FunctionEntry] = {}
    for number, function in enumerate(functions):
        files = {kind: function.name + SUFFIXES[kind] for kind in formats}
        for kind, name in files.items():
            _write(kind, sources[kind][function.name], folder / name)
        with torch.no_grad():
            outputs = function.module(*function.inputs.values())
        entries[function.name] = function_entry(function, outputs, files)
        report(callback, number + 1, len(functions))
    manifest = Manifest(
        format=FORMAT,
        model_name=model.config.name,
        image=list(by_name["encode"].inputs["image"].shape),
        latent=list(by_name["decode"].inputs["latent"].shape),
        context=[1, *by_name["noise"].inputs["context"].shape[1:]],
        batch=batch,
        edits=edits,
        steps=settings.steps,
        guidance_scale=model.config.guidance_scale,
        device=model.device.type,
        dtype=str(model.dtype).removeprefix("torch."),
        functions=entries,
        weights={name: Port.of(name, x) for name, x in {**weights, **samples}.items()},
        files={path.name: file_entry(path) for path in sorted(folder.iterdir())},
        schedule=schedule_tables(model.schedule(settings.steps)),
        optimization=optimization(settings, model),
        blend=dict(BLEND),
        inversion=inversion_header(settings, model, size),
        methods=[name for name, row in METHODS.items() if row.edits_as_null_text],
        versions=_versions(model, formats),
        instructions=instructions() if "aoti" in formats else [],
    )
    write_manifest(manifest, folder)
    return manifest


def _size(model: StableDiffusion, size: int | tuple[int, int] | None) -> tuple[int, int]:
    """Return (width, height); ValueError for sides that the model does not take."""
    side = model.config.image_size
    width, height = (size, size) if isinstance(size, int) else size or (side, side)
    multiple = model.config.granularity
    if any(
        a_whole_number("size", x, multiple, 8192, ", in pixels") % multiple for x in (width, height)
    ):
        raise ValueError(f"size: got {shown(size)}, expected multiples of {multiple}")
    return width, height


def _replaceable(folder: Path) -> Path:
    """Return a folder's path; ExportError for one that holds anything but an export."""
    target = Path(os.path.realpath(folder))
    if target.exists() and not target.is_dir():
        raise ExportError(f"{folder}: got a file, expected the name of a folder")
    there = sorted(path.name for path in target.iterdir()) if target.exists() else []
    written = {NAME, WEIGHTS, *(f"{name}{end}" for name in FUNCTIONS for end in SUFFIXES.values())}
    foreign = [name for name in there if name not in written]
    if foreign or (there and not is_export(target)):
        raise ExportError(
            f"{folder}: got a folder that holds {(foreign or there)[0]}, expected a new one, or one"
            " that holds an export alone"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _write(kind: str, function: Function, path: Path) -> None:
    if kind == "aoti":
        from nti.export.aoti import package_program, write_package

        write_package(package_program(function), path)
        return
    from nti.export.onnx import onnx_program, write_graph

    write_graph(onnx_program(function), function, path, path.parent / WEIGHTS)


def _versions(model: StableDiffusion, formats: Sequence[str]) -> dict[str, str]:
    found = describe_versions(model)
    made = {name: found[name] for name in ("nti", "torch")}
    if "onnx" in formats:
        made |= {name: metadata.version(name) for name in ("onnx", "onnxscript")}
    return made
