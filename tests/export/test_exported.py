"""What is not the export that its manifest describes is refused, not computed."""

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from PIL import Image
from torch._inductor.cpu_vec_isa import VecAVX2, invalid_vec_isa

import nti
from nti import StableDiffusion
from nti.export import aoti
from nti.export.export import export
from nti.export.exported import Exported, load_exported
from nti.export.manifest import ExportError, read_manifest
from nti.inversion.tensor_file import read_tensors
from tiny import INPAINTING, make_model

Change = Callable[[Path], None]


def edited(change: Callable[[dict[str, Any]], None]) -> Change:
    """Change the manifest."""

    def do(folder: Path) -> None:
        path = folder / "manifest.json"
        found = json.loads(path.read_text())
        change(found)
        path.write_text(json.dumps(found))

    return do


def flipped(folder: Path) -> None:
    path = folder / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


CHANGES: dict[str, tuple[Change, str]] = {
    "unfinished": (lambda f: (f / "manifest.json").unlink(), "got no manifest.json, expected a"),
    "no JSON": (lambda f: (f / "manifest.json").write_text("{"), "manifest: got text that is no"),
    "format": (edited(lambda m: m.update(format="nti-export-9")), "got format 'nti-export-9'"),
    "field": (edited(lambda m: m.pop("batch")), "manifest: .*batch"),
    "one bit": (flipped, r"weights.safetensors: got \d+ bytes of SHA-256"),
    "no graph": (lambda f: (f / "noise.onnx").unlink(), "noise.onnx: no such file"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_folder_that_has_changed_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    change, message = CHANGES[name]
    change(copy)
    with pytest.raises(ExportError, match=message):
        load_exported(copy, "onnx")


def test_a_graph_takes_its_weights_when_it_is_first_called(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has its own copy, so what is not called takes no memory."""
    made = []
    plain = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, *a, **k: made.append(path) or plain(path, *a, **k),
    )
    exported = load_exported(folder, "onnx")
    assert not made
    tokens = torch.zeros(1, 77, dtype=torch.int64)
    for _ in range(2):
        exported("text", tokens)
    assert made == [str(folder / "text.onnx")]


def test_a_folder_that_was_written_anew_before_a_first_call_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    """Its manifest was read, so its graphs and weights must still be those that it describes."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    exported = load_exported(copy, "onnx")
    tokens = torch.zeros(1, 77, dtype=torch.int64)
    os.utime(copy / "weights.safetensors", (0, 0))
    with pytest.raises(ExportError, match="was written anew since the folder was loaded"):
        exported("text", tokens)


PACKAGES: dict[str, tuple[Change, str]] = {
    "torch": (
        edited(lambda m: m["versions"].update(torch="1.0")),
        "made for torch 1.0, expected .* export with this PyTorch",
    ),
    "processor": (
        edited(lambda m: m.update(instructions=["avx9"])), "for a processor with avx9, which",
    ),
    "strides": (
        edited(lambda m: m["weights"]["unet.conv_in.weight"].update(strides=[1, 2, 3, 4])),
        r"unet.conv_in.weight: got float32 .*, expected .* with strides \(1, 2, 3, 4\)",
    ),
    "shape": (
        edited(lambda m: m["weights"]["unet.conv_in.weight"].update(shape=[1, 2, 3, 4])),
        r"unet.conv_in.weight: got float32 .*, expected float32 \(1, 2, 3, 4\)",
    ),
    "names": (edited(lambda m: m["weights"].pop("unet.conv_in.weight")), "other tensors than the"),
}  # fmt: skip


@pytest.mark.parametrize("name", PACKAGES)
def test_packages_for_something_else_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)

    def packaged(manifest: dict[str, Any]) -> None:
        for function in manifest["functions"].values():
            function["files"]["aoti"] = "none.pt2"

    edited(packaged)(copy)
    change, message = PACKAGES[name]
    change(copy)
    with pytest.raises(ExportError, match=message):
        load_exported(copy, "aoti")


def test_a_format_that_was_not_exported_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="format: got 'xla', expected one of aoti, onnx"):
        load_exported(folder, "xla")
    with pytest.raises(ExportError, match="got no aoti of .*text, .*--format aoti"):
        load_exported(folder)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((torch.zeros(2, 4, 8, 8),), "noise: got 1 inputs, expected 3: latent, timestep, context"),
        (
            (torch.zeros(2, 4, 8, 8), torch.tensor(1), torch.zeros(1, 77, 24)),
            r"noise: latent: got float32 \(2, 4, 8, 8\), expected float32 \(1, 4, 8, 8\)",
        ),
        (
            (torch.zeros(1, 4, 8, 8), torch.tensor(1.0), torch.zeros(1, 77, 24)),
            r"noise: timestep: got float32 \(\), expected int64 \(\)",
        ),
    ],
    ids=["number", "shape", "dtype"],
)
def test_other_inputs_are_refused(
    exported: Exported, inputs: tuple[torch.Tensor, ...], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        exported("noise", *inputs)
    with pytest.raises(
        ExportError, match="function: got 'step', expected one of blend, controlled, decode"
    ):
        exported("step")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 0}, "batch: got 0, expected 1"),
        ({"edits": 0}, "edits: got 0, expected 1"),
        ({"steps": 0}, "steps: got 0"),
        ({"size": 100}, "size: got 100, expected multiples of 16"),
        ({"only": ["step"]}, "only: got 'step', expected one of text, encode"),
        ({"only": []}, "only: got none, expected some of text, encode"),
        ({"formats": []}, "formats: got none, expected some of aoti, onnx"),
        ({"formats": ["xla"]}, "formats: got 'xla', expected one of aoti, onnx"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_refused(
    small: StableDiffusion, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        export(small, tmp_path / "x", **settings)
    assert not (tmp_path / "x").exists()


def test_models_that_cannot_be_exported_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="whose UNet takes 9 channels, .* to export it"):
        export(make_model(INPAINTING), tmp_path / "x")
    with pytest.raises(ValueError, match="memory='low', whose blocks cannot be traced"):
        export(make_model(recompute=True), tmp_path / "x")


def test_nothing_but_an_export_is_replaced(
    small: StableDiffusion, folder: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("words")
    with pytest.raises(ExportError, match="holds thesis.txt, expected a new one"):
        export(small, mine)
    with pytest.raises(ExportError, match="got a file, expected the name of a folder"):
        export(small, mine / "thesis.txt")
    assert (mine / "thesis.txt").read_text() == "words"
    for name in ("thesis.onnx", "weights.safetensors", "manifest.json"):  # theirs, not ours
        next(mine.iterdir()).rename(mine / name)
        with pytest.raises(ExportError, match=f"holds {name}, expected a new one"):
            export(small, mine)
        assert (mine / name).read_text() == "words"


def test_an_export_that_fails_leaves_the_earlier_one(
    small: StableDiffusion, folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    with pytest.raises(nti.Stopped):
        export(small, copy, only=["encode"], formats=["onnx"], callback=lambda done, total: True)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
    export(small, copy, only=["encode"], formats=["onnx"])
    modes = {path.stat().st_mode for path in copy.iterdir()}
    assert len(modes) == 1  # as the umask has it, the weights too
    assert sorted(path.name for path in copy.iterdir()) == [
        "encode.onnx", "manifest.json", "weights.safetensors",
    ]  # fmt: skip


def test_the_manifest_says_what_a_runtime_needs(small: StableDiffusion, folder: Path) -> None:
    manifest = read_manifest(folder)
    schedule = small.schedule(manifest.steps)
    assert manifest.schedule["timesteps"] == list(schedule.timesteps)
    z, eps = torch.randn(2, 5, dtype=torch.float64)
    for i in range(schedule.steps):
        tables = (manifest.schedule[way] for way in ("sample", "invert"))
        down, up = ([t["of_latent"][i], t["of_eps"][i]] for t in tables)
        assert torch.allclose(up[0] * (down[0] * z + down[1] * eps) + up[1] * eps, z)
    assert len(manifest.optimization["learning_rate"]) == manifest.steps
    assert (manifest.batch, manifest.edits) == (1, 2)
    weights = manifest.files["weights.safetensors"]["bytes"]
    graphs = sum(e["bytes"] for n, e in manifest.files.items() if n.endswith(".onnx"))
    assert weights == (folder / "weights.safetensors").stat().st_size and graphs > 0


def test_packages_without_vector_code_are_told_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(aoti, "aoti_compile_and_package", lambda *given, **settings: None)
    for found, told in ((invalid_vec_isa, True), (VecAVX2(), False)):
        monkeypatch.setattr(aoti, "pick_vec_isa", lambda found=found: found)
        monkeypatch.setattr(VecAVX2, "__bool__", lambda self: True)
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            aoti.write_package(None, tmp_path / "x")  # type: ignore[arg-type]
        assert ["packages will be slow" in str(each.message) for each in heard] == [True] * told


def test_the_manifest_holds_the_header_that_nti_itself_writes(
    folder: Path, small: StableDiffusion, tmp_path: Path
) -> None:
    """But for what a runtime puts in."""
    image = Image.new("RGB", (64, 64), "navy")
    manifest = json.loads((folder / "manifest.json").read_text())
    made = nti.invert(small, image, "a cat", steps=manifest["steps"])
    made.save(tmp_path / "x.nti.safetensors")
    own = dict(read_tensors(tmp_path / "x.nti.safetensors", "inversion").header)
    found = manifest["inversion"]
    assert manifest["methods"][:2] == ["null-text", "null-text-fast"]
    assert "direct" not in manifest["methods"]
    for header in (own, found):
        for name in ("prompt", "iterations"):
            del header[name]
        for name in ("image_sha256", "versions"):
            del header["made"][name]
    assert found == own
