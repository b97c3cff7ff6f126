"""The command line, run in this process, on the embedded model with few steps."""

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file

from nti import EditPlan, Inversion
from nti.cli import main
from nti.demo import sample_captions, sample_image
from nti.inversion.null_text import Rule
from sample import CAPTION, FEW


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


def test_an_image_of_another_shape_comes_back_at_its_own_size(
    photograph: Path, saved_wide: Path, tmp_path: Path
) -> None:
    plain, pasted = tmp_path / "r.png", tmp_path / "p.png"
    assert main(["reconstruct", str(saved_wide), "-o", str(plain)]) == 0
    assert size_of(plain) == (160, 128)
    back = ["--paste-back", str(photograph)]
    assert main(["reconstruct", str(saved_wide), *back, "-o", str(pasted)]) == 0
    assert size_of(pasted) == (200, 136)
    prompts = ["--prompt", "a green circle on snow", "--prompt", "a red circle on snow"]
    edited = tmp_path / "e.png"
    assert main(["edit", str(saved_wide), *prompts, *back, "-o", str(edited)]) == 0
    placement = Inversion.load(saved_wide).placement
    assert placement is not None and placement.taken == (15, 0, 185, 136)
    for path in (pasted, tmp_path / "e-1.png", tmp_path / "e-2.png"):
        with Image.open(path) as image, Image.open(photograph) as original:
            upright = ImageOps.exif_transpose(original)
            for edge in ((0, 0, 15, 136), (185, 0, 200, 136)):
                assert image.crop(edge).tobytes() == upright.crop(edge).tobytes()
            assert image.tobytes() != upright.tobytes()


def test_the_own_size_is_rounded_to_what_the_model_takes(photograph: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.nti.safetensors"
    options = ["--size", "native", "--fit", "pad", "--method", "ddim", *FEW]
    image = str(photograph)
    assert main(["invert", image, "--prompt", CAPTION, *options, "-o", str(path)]) == 0
    assert Inversion.load(path).latents.shape[-2:] == (16, 24)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--mode", "refine"], {"mode": "refine"}),
        (["--cross", "0.6"], {"cross_replace": 0.6}),
        (["--cross", "0.2:0.6"], {"cross_replace": (0.2, 0.6)}),
        (
            ["--cross", "0.6", "--cross", "green=0.2:0.9"],
            {"cross_replace": {"default_": 0.6, "green": (0.2, 0.9)}},
        ),
        (["--self", "0.3"], {"self_replace": 0.3}),
        (["--blend", "circle:star"], {"blend": ("circle", "star")}),
        (["--blend", "circle"], {"blend": "circle"}),
        (["--subtract", "snow"], {"subtract": "snow"}),
        (["--reweight", "a=2", "--reweight", "b=-1"], {"reweight": {"a": 2.0, "b": -1.0}}),
        (["--no-replay"], {"replay": False}),
        (["--guidance", "2"], {"guidance_scale": 2.0}),
        (["--blend-start", "0.4"], {"blend_start": 0.4}),
        (["--blend-threshold", "0.5"], {"blend_threshold": 0.5}),
        (["--negative-prompt", "snow"], {"negative_prompt": "snow"}),
        (["--start", "2"], {"start": 2}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_each_option_of_edit_reaches_the_algorithm(
    saved: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    expected: dict[str, object],
) -> None:
    import nti.editing.prompt_to_prompt as p2p

    calls: list[dict[str, object]] = []
    create, plain = EditPlan.create, p2p.edit_latents

    def planned(tokenizer: object, source: str, prompts: object, **settings: object) -> EditPlan:
        calls.append(settings)
        return create(tokenizer, source, prompts, steps=4)

    def edited(model: object, inversion: object, plan: object, **settings: object) -> object:
        calls.append({k: v for k, v in settings.items() if k != "callback"})
        return plain(model, inversion, plan)

    monkeypatch.setattr(EditPlan, "create", planned)
    monkeypatch.setattr(p2p, "edit_latents", edited)
    prompt = ["--prompt", "a green circle on snow", "-o", str(tmp_path / "e.png")]
    assert main(["edit", str(saved), *prompt, *options]) == 0
    defaults = {"mode": "auto", "cross_replace": 0.8, "self_replace": 0.5, "replay": True}
    defaults |= {"blend_start": 0.2, "blend_threshold": 0.3, "start": 0, "steps": 4}
    absent = ("blend", "subtract", "reweight")
    assert len(calls) == 2
    assert calls[0] | calls[1] == {**dict.fromkeys(absent), **defaults, **expected}
    assert size_of(tmp_path / "e.png") == (128, 128)


def test_several_prompts_are_numbered(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = ["--prompt", "a green circle on snow", "--prompt", "a striped purple circle on snow"]
    assert main(["edit", str(saved), *prompts, "-o", str(tmp_path / "e.png")]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e-1.png", "e-2.png"]
    assert "(replace: a green" in (said := capsys.readouterr().out) and "(refine: a striped" in said


def test_align_prints_the_tokens_and_who_receives_whose_attention(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nti.model.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    prompts = ["A  Cat, next to a mirror frame", "a capybara, next to a mirror frame"]
    assert main(["align", *prompts]) == 0
    said = capsys.readouterr().out
    assert " 2   2368 cat" in said and "1289 cap" in said
    assert (
        "replace: 'a cat, next to a mirror frame' -> 'a capybara, next to a mirror frame'" in said
    )
    assert "4 bara               <- 2 cat x 0.333" in said
    assert main(["align", *prompts, "--mode", "refine"]) == 0
    assert "4 bara               <- own" in capsys.readouterr().out


def test_align_says_what_an_over_long_prompt_loses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["align", "a cat", "a cat " * 37 + "in a mirror frame", "--mode", "refine"]) == 0
    warning = "nti: warning: the prompt is longer than 75 tokens; this was cut: 'a mirror frame'"
    assert capsys.readouterr().err.splitlines() == [warning]


@pytest.mark.parametrize(
    ("options", "cells"),
    [
        ([], (6, 2)),  # the image and seven tokens
        (["--words"], (6, 1)),
        (["--words", "--prompt", "a green circle on snow"], (6, 2)),
        (["--words", "--level", "2", "--place", "middle"], (6, 1)),
        (["--components", "3"], (4, 1)),
    ],
    ids=["tokens", "words", "edit", "middle", "components"],
)
def test_attention_draws_a_labelled_grid(
    saved: Path, tmp_path: Path, options: list[str], cells: tuple[int, int]
) -> None:
    out = tmp_path / "a.png"
    assert main(["attention", str(saved), *options, "-o", str(out)]) == 0
    width, height = size_of(out)
    assert width == 10 + cells[0] * 170 and height // 200 == cells[1]


def test_inspect_describes_inversions_and_checkpoints(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from nti.model import embedded_checkpoint

    assert main(["inspect", str(saved)]) == 0
    assert f"prompt: {CAPTION}" in capsys.readouterr().out
    assert main(["inspect", str(embedded_checkpoint())]) == 0
    assert "UNet: 6,875,268 parameters in F16" in capsys.readouterr().out


def test_a_word_outside_the_world_is_warned_of(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "e.png")
    assert main(["edit", str(saved), "--prompt", "a purple dragon on snow", "-o", out]) == 0
    assert "nti: warning: shapes was never trained on 'dragon'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], {"noise_at": "target", "learning_rate": 0.005, "threshold": 1.01e-3}),
        (["--noise-at", "current"], {"noise_at": "current"}),
        (["--learning-rate", "0.02"], {"learning_rate": 0.02}),
        (["--early-stop", "0"], {"threshold": 0.0}),
    ],
    ids=["published", "noise-at", "learning-rate", "early-stop"],
)
def test_each_rule_of_invert_reaches_the_algorithm(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    expected: dict[str, object],
) -> None:
    given: list[dict[str, object]] = []

    def invert(
        *_: object, learning_rate: Rule, threshold: Rule, noise_at: str, **__: object
    ) -> None:
        rules = {"learning_rate": learning_rate(50, 50), "threshold": threshold(50, 50)}
        given.append({"noise_at": noise_at, **rules})
        raise ValueError("enough")

    monkeypatch.setattr("nti.inversion.invert.invert", invert)
    arguments = [
        "invert",
        str(sample_image("purple-circle")),
        "--prompt",
        "a",
        *options,
        "-o",
        str(tmp_path / "x.safetensors"),
    ]
    assert main(arguments) == 2
    for name, value in expected.items():
        assert given[0][name] == (pytest.approx(value) if name != "noise_at" else value)


def test_a_generated_picture_is_edited_like_an_inverted_one(tmp_path: Path) -> None:
    made, picture, edited = (str(tmp_path / name) for name in ("g.safetensors", "g.png", "e.png"))
    prompt = ["generate", "a red star on grass", "--seed", "3", "--image", picture]
    assert main([*prompt, *FEW, "-o", made]) == 0
    assert Inversion.load(Path(made)).method == "generated"
    again = str(tmp_path / "again.png")
    assert main(["reconstruct", made, "--device", "cpu", "-o", again]) == 0
    with Image.open(picture) as first, Image.open(again) as second:
        assert first.size == (128, 128) and first.tobytes() == second.tobytes()
    assert main(["edit", made, "--prompt", "a blue star on grass", "-o", edited]) == 0
    with Image.open(picture) as first, Image.open(edited) as second:
        assert first.tobytes() != second.tobytes()


def test_an_edit_may_be_left_as_latents(saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.SAFETENSORS"
    prompts = ["--prompt", "a green circle on snow", "--prompt", "a red circle on snow"]
    assert main(["edit", str(saved), *prompts, "-o", str(out)]) == 0
    assert load_file(out)["latents"].shape == (2, 4, 16, 16)
    assert [p.name for p in tmp_path.iterdir()] == ["e.SAFETENSORS"]


def test_float64_stays_float64(tmp_path: Path) -> None:
    path = tmp_path / "x.nti.safetensors"
    image = str(sample_image("red-cross"))
    arguments = ["invert", image, "--prompt", "a red cross on wood", "--dtype", "float64"]
    assert main([*arguments, "--method", "ddim", *FEW, "-o", str(path)]) == 0
    assert Inversion.load(path).latents.dtype == torch.float64


def test_an_inversion_goes_to_other_programs_and_comes_back(saved: Path, tmp_path: Path) -> None:
    theirs, back = tmp_path / "theirs.safetensors", tmp_path / "back.safetensors"
    assert main(["convert", str(saved), "-o", str(theirs)]) == 0
    assert main(["convert", str(theirs), "-o", str(back)]) == 2  # without a prompt
    assert main(["convert", str(theirs), "--prompt", CAPTION, "-o", str(back)]) == 0
    pictures = []
    for inversion in (saved, back):
        assert main(["reconstruct", str(inversion), "-o", str(tmp_path / "r.png")]) == 0
        pictures.append((tmp_path / "r.png").read_bytes())
    assert pictures[0] == pictures[1]
