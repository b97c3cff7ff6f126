"""`nti inpaint`, on a tiny checkpoint of nine input channels."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from checkpoints import single_file
from nti.cli import main
from nti.demo import sample_image
from nti.model import CONFIG_KEY
from tiny import INPAINTING, make_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inpaint") / "tiny.safetensors"
    metadata = {CONFIG_KEY: INPAINTING.to_json()}
    return single_file(make_model(INPAINTING, torch.float32), path, metadata=metadata)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    Image.effect_noise((96, 64), 90).convert("RGB").save(path)
    return path


@pytest.fixture(scope="module")
def mask(picture: Path) -> Path:
    """White in the right half."""
    path = picture.with_name("mask.png")
    drawn = Image.new("L", (96, 64), 0)
    drawn.paste(255, (48, 0, 96, 64))
    drawn.save(path)
    return path


def test_the_hole_alone_changes(
    checkpoint: Path, picture: Path, mask: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o.png"
    prompts = ["--prompt", "a cat", "--prompt", "a dog"]
    command = ["inpaint", str(picture), "--mask", str(mask), *prompts, "--size", "native"]
    model = ["--checkpoint", str(checkpoint), "--device", "cpu", "--steps", "2"]
    assert main([*command, *model, "--keep-outside", "-o", str(out)]) == 0
    assert "o-1.png (a cat)" in capsys.readouterr().out
    with Image.open(picture) as before:
        pictures = [before.tobytes()]
        left = before.crop((0, 0, 48, 64)).tobytes()
    for path in (tmp_path / "o-1.png", tmp_path / "o-2.png"):
        with Image.open(path) as after:
            assert after.size == (96, 64) and after.crop((0, 0, 48, 64)).tobytes() == left
            pictures.append(after.tobytes())
    assert len(set(pictures)) == 3


def test_each_option_reaches_the_algorithm(
    checkpoint: Path, picture: Path, mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, object] = {}

    def inpaint(*arguments: object, **settings: object) -> None:
        given.update(settings, arguments=arguments[1:])
        raise ValueError("enough")

    monkeypatch.setattr("nti.editing.inpaint.inpaint", inpaint)
    options = ["--size", "64x32", "--fit", "pad", "--steps", "9", "--guidance", "3", "--seed", "7"]
    options += ["--negative-prompt", "fog", "--strength", "0.5", "--keep-outside"]
    command = ["inpaint", str(picture), "--mask", str(mask), "--prompt", "a", *options]
    checkpoint_options = ["--checkpoint", str(checkpoint), "--device", "cpu"]
    assert main([*command, *checkpoint_options, "-o", str(tmp_path / "o.png")]) == 2
    given.pop("callback")
    assert given == {
        "arguments": (picture, mask, ["a"]), "size": (64, 32), "fit": "pad", "steps": 9,
        "guidance_scale": 3.0, "seed": 7, "negative_prompt": "fog", "strength": 0.5,
        "keep_outside": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mask", "{image}"], "model: got shapes, whose UNet takes 4 channels, expected 9"),
        (["--mask", "{image}", "--checkpoint", "{nine}"], "mask: got 128x128 pixels, expected"),
        (["--mask", "none.png", "--checkpoint", "{nine}"], "none.png: no such file"),
        (["--mask", "{mask}", "--checkpoint", "{nine}", "--strength", "0"], "strength: got 0.0"),
        (["--mask", "{mask}", "--checkpoint", "{nine}", "--fit", "f"], "fit: got 'f'"),
    ],
    ids=["model", "size", "file", "strength", "fit"],
)
def test_errors_are_one_line_and_exit_code_2(
    checkpoint: Path, picture: Path, mask: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str,
) -> None:  # fmt: skip
    places = {"nine": checkpoint, "mask": mask, "image": sample_image("purple-circle")}
    resolved = [argument.format(**places) for argument in arguments]
    common = ["inpaint", str(picture), "--prompt", "a", "--device", "cpu"]
    assert main([*common, *resolved, "-o", str(tmp_path / "o.png")]) == 2
    error = [x for x in capsys.readouterr().err.splitlines() if x.startswith("nti: error: ")]
    assert len(error) == 1 and message in error[0]
    assert not list(tmp_path.iterdir())


def test_the_mask_is_not_written_over(checkpoint: Path, picture: Path, mask: Path) -> None:
    command = ["inpaint", str(picture), "--mask", str(mask), "--prompt", "a"]
    before = mask.read_bytes()
    assert main([*command, "--checkpoint", str(checkpoint), "-o", str(mask)]) == 2
    assert mask.read_bytes() == before


def test_other_commands_refuse_the_checkpoint(
    checkpoint: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--checkpoint", str(checkpoint), "--device", "cpu"]
    out = ["-o", str(tmp_path / "x.nti.safetensors")]
    for command in (["invert", str(picture), "--prompt", "a"], ["generate", "a"]):
        assert main([*command, *model, *out]) == 2
        assert "model: got tiny inpainting, whose UNet takes 9" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
