"""No command destroys what it did not write, and what is wrong with an output shows at once."""

import os
import shutil
import stat
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from nti import Inversion
from nti.cli import main
from nti.demo import sample_image
from nti.model import embedded_checkpoint
from sample import CAPTION, FEW


@pytest.fixture
def place(saved: Path, tmp_path: Path) -> Path:
    """A folder with a photograph, a checkpoint, an inversion, and ways around their names."""
    shutil.copy(sample_image("purple-circle"), tmp_path / "cat.png")
    shutil.copy(saved, tmp_path / "x.nti.safetensors")
    shutil.copy(embedded_checkpoint(), tmp_path / "model.safetensors")
    (tmp_path / "link.png").symlink_to("cat.png")
    (tmp_path / "link.safetensors").symlink_to("model.safetensors")
    os.link(tmp_path / "model.safetensors", tmp_path / "hard.safetensors")
    (tmp_path / "notes.png").write_text("no picture")
    (tmp_path / "notes.safetensors").write_text("no tensors")
    (tmp_path / "notes").write_text("no folder")
    save_file({"weight": torch.ones(1)}, tmp_path / "other.safetensors")
    (tmp_path / "cut.dat").write_bytes(saved.read_bytes()[:-50])
    os.mkfifo(tmp_path / "pipe.png")
    return tmp_path


INVERT = ["invert", "{p}/cat.png", "--prompt", CAPTION]
RECONSTRUCT = ["reconstruct", "{p}/x.nti.safetensors"]
EDIT = ["edit", "{p}/x.nti.safetensors", "--prompt", "a green circle on snow"]
CONVERT = ["convert", "{p}/x.nti.safetensors"]
OF_MODEL = ["--checkpoint", "{p}/model.safetensors"]


@pytest.mark.parametrize(
    ("command", "output", "message"),
    [
        (INVERT, "cat.png", "expected a name that ends in .safetensors (inversion)"),
        ([*INVERT, *OF_MODEL], "model.safetensors", "which this command reads"),
        ([*INVERT, *OF_MODEL], "link.safetensors", "which this command reads"),
        ([*INVERT, *OF_MODEL], "hard.safetensors", "which this command reads"),
        (INVERT, "model.safetensors", "which is there and no inversion"),
        (INVERT, "other.safetensors", "which is there and no inversion"),
        (INVERT, "notes.safetensors", "which is there and no inversion"),
        (INVERT, "notes/x.safetensors", "cannot be written"),
        ([*RECONSTRUCT, "--paste-back", "{p}/cat.png"], "cat.png", "which this command reads"),
        ([*RECONSTRUCT, "--paste-back", "{p}/cat.png"], "link.png", "which this command reads"),
        (RECONSTRUCT, "notes.png", "which is there and no picture"),
        (RECONSTRUCT, "cat.png", "which is there and no picture that nti wrote"),
        (RECONSTRUCT, "link.png", "which is there and no picture that nti wrote"),
        (EDIT, "cat.png", "which is there and no picture or latents that nti wrote"),
        (RECONSTRUCT, "new/folder/x.txt", "expected a name that ends in .png"),
        (RECONSTRUCT, "pipe.png", "got the special file"),
        (RECONSTRUCT, f"{'n' * 260}.png", "cannot be written: File name too long"),
        (RECONSTRUCT, "x.nti.safetensors", "expected a name that ends in .png (picture)"),
        (EDIT, "x.nti.safetensors", "which this command reads"),
        (EDIT, "model.safetensors", "which is there and no picture or latents"),
        ([*EDIT, "--prompt", "a circle"], "edited.png", "edited-2.png, which is there and no"),
        (["generate", "a star"], "model.safetensors", "which is there and no inversion"),
        (["generate", "a star", "--image", "{p}/notes.png"], "g.safetensors", "no picture"),
        (["attention", "{p}/x.nti.safetensors"], "notes.png", "which is there and no picture"),
        (["convert", "{p}/x.nti.safetensors"], "x.nti.safetensors", "which this command reads"),
        (["convert", "{p}/x.nti.safetensors"], "other.safetensors", "there and no published"),
        (
            ["convert", "{p}/other.safetensors"],
            "new.safetensors",
            "other.safetensors: not a saved inversion",
        ),
        (["convert", "{p}/cut.dat"], "new.safetensors", "cut.dat: not a saved inversion"),
        (["convert", "{p}/pipe.png"], "new.safetensors", "pipe.png: no such file"),
        ([*CONVERT, "--prompt", "a"], "new.safetensors", "--prompt: got a, expected none"),
        ([*CONVERT, "--steps", "9"], "new.safetensors", "--steps: got 9, expected none"),
        ([*CONVERT, "--guidance", "0"], "new.safetensors", "--guidance: got 0.0, expected none"),
        (["demo"], "", "which holds "),
        (["demo"], "notes", "got the file"),
        (["demo"], "notes/demo", "cannot be written"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 40 else None,
)
def test_an_output_that_would_destroy_something_is_refused_before_the_work(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    output: str,
    message: str,
) -> None:
    def work(*_: object, **__: object) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr("nti.model.load_model", work)
    (place / "edited-2.png").write_text("notes")
    before = {path: path.read_bytes() for path in place.iterdir() if path.is_file()}
    arguments = [word.replace("{p}", str(place)) for word in command]
    assert main([*arguments, "-o", str(place / output)]) == 2
    assert message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in place.iterdir() if path.is_file()} == before
    assert not (place / "new").exists(), "no folder is made for a name that is refused"
    assert (place / "link.png").is_symlink() and stat.S_ISFIFO((place / "pipe.png").stat().st_mode)


def test_an_older_result_is_written_again_through_a_link(place: Path) -> None:
    (place / "r.png").symlink_to("older.png")
    for _ in range(2):
        assert (
            main(["reconstruct", str(place / "x.nti.safetensors"), "-o", str(place / "r.png")]) == 0
        )
        assert (place / "r.png").is_symlink()
    with Image.open(place / "older.png") as image:
        assert image.size == (128, 128)


def test_a_result_that_cannot_be_saved_is_kept_elsewhere(
    place: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The output's folder goes away while the work is being done."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    gone = place / "gone"

    def vanish(_: object, __: object) -> None:
        shutil.rmtree(gone, ignore_errors=True)
        gone.touch()

    monkeypatch.setattr("nti.cli.invert.InversionProgress.__call__", vanish)
    arguments = ["invert", str(place / "cat.png"), "--prompt", CAPTION, *FEW]
    assert main([*arguments, "-o", str(gone / "x.safetensors")]) == 2
    (kept,) = elsewhere.rglob("result.safetensors")
    assert f"cannot be written: Not a directory; the result was kept as {kept}" in (
        capsys.readouterr().err.replace("File exists", "Not a directory")
    )
    assert Inversion.load(kept).prompt == CAPTION


def test_latents_are_written_again(place: Path) -> None:
    out = place / "latents.safetensors"
    for prompt in ("a green circle on snow", "a red circle on snow"):
        arguments = ["edit", str(place / "x.nti.safetensors"), "--prompt", prompt]
        assert main([*arguments, "-o", str(out)]) == 0
        assert list(load_file(out)) == ["latents"]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp"])
def test_a_picture_of_ones_own_is_written_again_where_it_can_be_told(
    place: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = place / f"r{suffix}"
    command = ["reconstruct", str(place / "x.nti.safetensors"), "-o", str(out)]
    assert main(command) == 0
    assert main(command) == (2 if suffix == ".bmp" else 0)
    with Image.open(out) as image:  # what another program has saved is not ours any more
        bare = Image.new("RGB", image.size)
    bare.save(out)
    assert main(command) == 2
    assert "that nti wrote, expected a new name" in capsys.readouterr().err


def test_a_picture_that_cannot_be_saved_does_not_take_the_others_along(
    place: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))

    def show(*_: object) -> None:
        (place / "e-1.png").mkdir(exist_ok=True)

    monkeypatch.setattr("nti.cli.progress.Progress.show", show)
    prompts = ["--prompt", "a green circle on snow", "--prompt", "a red circle on snow"]
    edit = ["edit", str(place / "x.nti.safetensors"), *prompts, "-o", str(place / "e.png")]
    assert main(edit) == 2
    told = capsys.readouterr()
    (kept,) = elsewhere.rglob("result.png")
    assert "e-2.png" in told.out and "e-1.png" not in told.out
    assert f"the result was kept as {kept}" in told.err
    with Image.open(place / "e-2.png") as second, Image.open(kept) as first:
        assert first.size == second.size == (128, 128)
