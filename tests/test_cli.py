"""The command line, run in this process, on the embedded model with few steps."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from nti import Inversion
from nti.cli import main
from nti.demo import sample_captions, sample_image

CAPTION = "a purple circle on snow"
FEW = ["--steps", "4", "--device", "cpu"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "x.nti.safetensors"
    image = str(sample_image("purple-circle"))
    assert main(["invert", image, "--prompt", CAPTION, *FEW, "-o", str(path)]) == 0
    return path


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_the_sample_captions_are_those_of_the_images() -> None:
    assert sample_captions()["purple-circle"] == CAPTION
    assert all(sample_image(name).is_file() for name in sample_captions())


def test_invert_saves_an_inversion(saved: Path) -> None:
    inversion = Inversion.load(saved)
    assert (inversion.steps, inversion.prompt, inversion.method) == (4, CAPTION, "null-text")


def test_reconstruct_writes_the_image(saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "r.png"
    assert main(["reconstruct", str(saved), "-o", str(out)]) == 0
    assert size_of(out) == (128, 128)


def test_edit_takes_every_option(saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.png"
    options = ["--cross", "0.6", "--cross", "green=0.2:0.9", "--self", "0.3", "--blend"]
    options += ["circle:circle", "--subtract", "snow", "--reweight", "green=2", "--guidance", "2"]
    prompt = ["--prompt", "a green circle on snow"]
    assert main(["edit", str(saved), *prompt, *options, "-o", str(out)]) == 0
    plain = tmp_path / "p.png"
    assert main(["edit", str(saved), *prompt, "-o", str(plain)]) == 0
    assert out.read_bytes() != plain.read_bytes()


def test_several_prompts_are_numbered(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = ["--prompt", "a green circle on snow", "--prompt", "a striped purple circle on snow"]
    assert main(["edit", str(saved), *prompts, "-o", str(tmp_path / "e.png")]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e-1.png", "e-2.png"]
    assert "(replace: a green" in (said := capsys.readouterr().out) and "(refine: a striped" in said


@pytest.mark.parametrize("words", [[], ["--words"]], ids=["tokens", "words"])
def test_attention_draws_a_labelled_grid(saved: Path, tmp_path: Path, words: list[str]) -> None:
    out = tmp_path / "a.png"
    assert main(["attention", str(saved), *words, "-o", str(out)]) == 0
    assert size_of(out)[0] > 128


def test_inspect_describes_inversions_and_checkpoints(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from nti.model import embedded_checkpoint

    assert main(["inspect", str(saved)]) == 0
    assert f"prompt: {CAPTION}" in capsys.readouterr().out
    assert main(["inspect", str(embedded_checkpoint())]) == 0
    assert "unet: 6,875,268 parameters" in capsys.readouterr().out


def test_a_word_outside_the_world_is_warned_of(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "e.png")
    assert main(["edit", str(saved), "--prompt", "a purple dragon on snow", "-o", out]) == 0
    assert "nti: warning: shapes was never trained on 'dragon'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["invert", "none.png", "--prompt", "a", "-o", "x"], "none.png: no such file"),
        (["invert", "{image}", "--prompt", "a", "--steps", "0", "-o", "{o}"], "steps: got 0"),
        (["invert", "{image}", "--prompt", "a", "--method", "m", "-o", "{o}"], "method: got 'm'"),
        (["reconstruct", "none", "-o", "{o}"], "none: no such file; expected an inversion"),
        (["reconstruct", "{image}", "-o", "{o}"], "not a saved inversion"),
        (["reconstruct", "{saved}", "--steps", "9", "-o", "{o}"], "--steps: got 9, expected 4"),
        (["reconstruct", "{saved}", "--dtype", "int4", "-o", "{o}"], "--dtype: got 'int4'"),
        (["reconstruct", "{saved}", "--device", "warp", "-o", "{o}"], "warp"),
        (["reconstruct", "{saved}", "--checkpoint", "{image}", "-o", "{o}"], "not a safetensors"),
        (["reconstruct", "{saved}", "-o", "{folder}"], "--output: got the directory"),
        (["edit", "{saved}", "--prompt", "a", "--mode", "m", "-o", "{o}"], "mode: got 'm'"),
        (["edit", "{saved}", "--prompt", "a", "--cross", "x", "-o", "{o}"], "--cross: got 'x'"),
        (["edit", "{saved}", "--prompt", "a", "--self", "2", "-o", "{o}"], "self_replace: got 2"),
        (["edit", "{saved}", "--prompt", "a", "--reweight", "x", "-o", "{o}"], "expected WORD="),
        (["edit", "{saved}", "--prompt", "a", "--blend", "dog", "-o", "{o}"], "'dog' is not in"),
        (["inspect", "none"], "none: no such file"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(
    saved: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    places = {
        "{saved}": str(saved),
        "{image}": str(sample_image("purple-circle")),
        "{o}": str(tmp_path / "o.png"),
        "{folder}": str(tmp_path),
    }
    assert main([places.get(a, a) for a in arguments]) == 2
    error = [x for x in capsys.readouterr().err.splitlines() if x.startswith("nti: error: ")]
    assert len(error) == 1 and message in error[0]
    assert not (tmp_path / "o.png").exists()


def test_a_wrong_call_exits_with_2() -> None:
    for arguments in ([], ["nonsense"], ["invert"]):
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert exit_.value.code == 2


def test_float64_stays_float64(tmp_path: Path) -> None:
    path = tmp_path / "x.nti.safetensors"
    image = str(sample_image("red-cross"))
    arguments = ["invert", image, "--prompt", "a red cross on wood", "--dtype", "float64"]
    assert main([*arguments, "--method", "ddim", *FEW, "-o", str(path)]) == 0
    assert Inversion.load(path).latents.dtype == torch.float64
