"""`nti edit --editor` and `nti sweep`: each option reaches its editor, or is refused by name."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops
from safetensors.torch import load_file

import nti
from nti import Proximal
from nti.cli import main

GREEN = "a green circle on snow"


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    path = tmp_path / "mask.png"
    picture = Image.new("L", (128, 128))
    picture.paste(255, (32, 32, 96, 96))
    picture.save(path)
    return path


@pytest.mark.parametrize(
    ("editor", "options", "expected"),
    [
        ("sdedit", [], {}),
        ("sdedit", ["--strength", "0", "--seed", "0"], {"strength": 0.0, "seed": 0}),
        ("sdedit", ["--mix", "0", "--guidance", "0"], {"mix": 0.0, "guidance_scale": 0.0}),
        ("sdedit", ["--negative-prompt", ""], {"negative_prompt": ""}),
        ("masked", ["--mask", "circle"], {"mask": "circle"}),
        ("diffedit", ["--proximal", "l1"], {"proximal": Proximal("l1")}),
        (
            "masactrl",
            ["--proximal", "l0", "--proximal-quantile", "0.6", "--pull-below", "400"],
            {"proximal": Proximal("l0", 0.6, 400)},
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_each_option_reaches_the_editor(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, editor: str, options: list[str],
    expected: dict[str, Any],
) -> None:  # fmt: skip
    found: list[dict[str, Any]] = []

    def edited(model: object, inversion: object, prompts: list[str], **settings: Any) -> None:
        assert prompts == [GREEN] and callable(settings.pop("callback"))
        found.append(settings)
        raise ValueError("enough")

    monkeypatch.setattr(nti.EDITORS[editor].home.replace(":", "."), edited)
    out = str(tmp_path / "e.png")
    command = ["edit", str(saved), "--editor", editor, "--prompt", GREEN, "-o", out]
    assert main([*command, *options]) == 2
    assert found == [expected]


def test_p2p_takes_mix_and_proximal_guidance(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[dict[str, Any]] = []

    def edited(model: object, inversion: object, plan: object, **settings: Any) -> None:
        found.append(settings)
        raise ValueError("enough")

    monkeypatch.setattr("nti.editing.prompt_to_prompt.edit_latents", edited)
    command = ["edit", str(saved), "--prompt", GREEN, "-o", str(tmp_path / "e.png")]
    assert main([*command, "--mix", "0.5", "--proximal", "l0"]) == 2
    assert found[0]["mix"] == 0.5 and found[0]["proximal"] == Proximal("l0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--editor", "sdedit", "--start", "0"], "--start: got --editor sdedit, which does not"),
        (["--editor", "sdedit", "--mode", "auto"], "--mode: got --editor sdedit"),
        (["--editor", "sdedit", "--self", "0.5"], "--self: got --editor sdedit"),
        (["--editor", "masactrl", "--no-replay"], "--no-replay: got --editor masactrl"),
        (["--editor", "masactrl", "--seed", "0"], "--seed: got --editor masactrl"),
        (["--strength", "0"], "--strength: got --editor p2p, which does not take it, expected one"
         " of sdedit, masked, diffedit, unitune: leave"),
        (["--editor", "diffedit", "--mask", "circle"], "--mask: got --editor diffedit"),
        (["--editor", "sdedit", "--proximal-quantile", "0"], "--proximal-quantile: got --editor"),
        (["--editor", "masked"], "--mask: got none, expected one, as --editor masked needs it"),
        (["--editor", "mine"], "--editor: got 'mine', expected one of p2p, sdedit, masked"),
        (["--pull-below", "0"], "--pull-below: got no --proximal, expected l0 or l1"),
        (["--proximal", "l3"], "--proximal: got 'l3', expected one of l0, l1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_an_editor_does_not_take_is_refused_by_name(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str],
    message: str,
) -> None:  # fmt: skip
    out = tmp_path / "e.png"
    assert main(["edit", str(saved), "--prompt", GREEN, *options, "-o", str(out)]) == 2
    assert f"nti: error: {message}" in capsys.readouterr().err and not out.exists()


def test_pictures_and_latents_of_another_editor_are_written(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["edit", str(saved), "--editor", "sdedit", "--strength", "0.5", "--prompt", GREEN]
    picture, latents = tmp_path / "e.png", tmp_path / "e.safetensors"
    for path in (picture, latents):
        assert main([*command, "-o", str(path)]) == 0
    assert "(sdedit: a green circle on snow)" in capsys.readouterr().out
    expected = nti.sdedit(
        nti.load_model(device="cpu"), nti.Inversion.load(saved), GREEN, strength=0.5
    )
    assert torch.equal(load_file(latents)["latents"], expected.latents[-1])
    with Image.open(picture) as found:
        assert found.tobytes() == expected.images[0].tobytes()


def test_a_mask_is_a_file_or_a_word_and_the_original_stays_outside(
    saved_wide: Path, photograph: Path, mask: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "e.png"
    command = ["edit", str(saved_wide), "--editor", "masked", "--prompt", GREEN, "-o", str(out)]
    assert main([*command, "--mask", str(mask)]) == 2
    assert "mask: got 128x128 pixels, expected 200x136 or 160x128" in capsys.readouterr().err
    assert main([*command, "--mask", "cirle"]) == 2
    assert "mask: got 'cirle', expected a file that is there, or a word" in capsys.readouterr().err
    whole = Image.new("L", (200, 136))
    whole.paste(255, (61, 33, 122, 97))
    whole.save(mask)
    for given, box in ((str(mask), (61, 33, 122, 97)), ("circle", None)):
        assert main([*command, "--mask", given, "--paste-back", str(photograph)]) == 0
        with Image.open(out) as found:
            changed = ImageChops.difference(found, nti.open_image(photograph))
            assert found.size == (200, 136)
        seen = changed.getbbox()
        assert seen is not None and seen != (0, 0, 200, 136)
        if box is not None:
            outside = changed.copy()
            outside.paste(0, box)
            assert outside.getbbox() is None


def test_the_mask_is_not_written_over(
    saved: Path, mask: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["edit", str(saved), "--editor", "masked", "--prompt", GREEN, "--mask", str(mask)]
    before = mask.read_bytes()
    assert main([*command, "-o", str(mask)]) == 2
    assert "which this command reads" in capsys.readouterr().err and mask.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ["--over", "reweight", "--word", "green", "--values", "1,-2.5"],
            {"over": "reweight", "word": "green", "values": [1.0, -2.5]},
        ),
        (
            ["--over", "cross", "--values", "0.4,0.1:0.8", "--self", "0.3"],
            {"over": "cross_replace", "values": [0.4, (0.1, 0.8)], "self_replace": 0.3},
        ),
        (
            ["--over", "self", "--values", "0", "--guidance", "2", "--negative-prompt", "snow"],
            {"over": "self_replace", "guidance_scale": 2.0, "negative_prompt": "snow"},
        ),
        (
            ["--over", "guidance", "--values", "3", "--at-once", "2", "--blend", "circle"],
            {"over": "guidance_scale", "at_once": 2, "blend": "circle"},
        ),
    ],
    ids=["reweight", "cross", "self", "guidance"],
)
def test_each_option_of_sweep_reaches_it(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str],
    expected: dict[str, Any],
) -> None:  # fmt: skip
    found: list[dict[str, Any]] = []

    def swept(model: object, inversion: object, prompt: str, **settings: Any) -> Image.Image:
        found.append(settings)
        return Image.new("RGB", (7, 5))

    monkeypatch.setattr("nti.editing.sweep.sweep", swept)
    out = tmp_path / "s.png"
    assert main(["sweep", str(saved), "--prompt", GREEN, *options, "-o", str(out)]) == 0
    assert found[0] | expected == found[0]
    with Image.open(out) as image:
        assert image.size == (7, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--over", "cross", "--values", "0.4", "--cross", "0.2"], "--cross: got it beside --over"),
        (["--over", "guidance", "--values", "2", "--guidance", "0"], "--guidance: got it beside"),
        (["--over", "mode", "--values", "1"], "--over: got 'mode', expected one of reweight"),
        (["--over", "cross", "--values", "a"], "--values: got 'a', expected a number"),
        (["--over", "reweight", "--values", "1"], "word: got none, expected the word"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_sweep_says_what_it_cannot_do(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str],
    message: str,
) -> None:  # fmt: skip
    out = tmp_path / "s.png"
    assert main(["sweep", str(saved), "--prompt", GREEN, *options, "-o", str(out)]) == 2
    assert f"nti: error: {message}" in capsys.readouterr().err and not out.exists()
