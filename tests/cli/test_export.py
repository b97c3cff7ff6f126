"""`nti export` says what it wrote, and what it cannot."""

from functools import partial
from pathlib import Path

import pytest
import torch

from nti import StableDiffusion
from nti.cli import main
from nti.export import check as checks
from nti.export.export import export
from nti.export.manifest import read_manifest
from tiny import TINY, make_model


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> StableDiffusion:
    model = make_model(TINY, torch.float32)
    monkeypatch.setattr("nti.cli.export.load_model", lambda options: model)
    return model


def test_it_exports_and_checks(
    small: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    quick = ("encode", "decode", "noise")  # which stand for all
    monkeypatch.setattr("nti.export.export.export", partial(export, only=quick))
    out = tmp_path / "x"
    command = ["export", "--format", "onnx", "--steps", "5", "--edits", "3", "-o", str(out)]
    assert main([*command, "--check"]) == 0
    said = capsys.readouterr().out
    assert f"wrote {out}" in said and "onnx: differences from the model" in said
    assert "noise eps" in said and "more than" not in said
    manifest = read_manifest(out)
    assert (manifest.steps, manifest.edits, manifest.batch) == (5, 3, 1)
    monkeypatch.setitem(checks.TOLERANCES, "float32", 0.0)
    assert main([*command, "--check"]) == 2
    assert "--check: got other numbers in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "xla"], "--format: got 'xla', expected one of aoti, onnx, both"),
        (["--size", "native"], "--size: got native, expected pixels"),
        (["--size", "100"], "size: got (100, 100), expected multiples of 16"),
        (["--guidance", "3"], "--guidance: got 3.0, expected none"),
        (["--batch", "0"], "batch: got 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_do_not_fit_are_refused(
    small: StableDiffusion, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    options: list[str], message: str,
) -> None:  # fmt: skip
    assert main(["export", *options, "-o", str(tmp_path / "x")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
