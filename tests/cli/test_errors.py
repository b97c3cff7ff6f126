"""What goes wrong is one line and exit code 2."""

from pathlib import Path

import pytest

from nti.cli import main
from nti.demo import sample_image


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["invert", "none.png", "--prompt", "a", "-o", "{i}"], "none.png: no such file"),
        (["invert", "{image}", "--prompt", "a", "--steps", "0", "-o", "{i}"], "steps: got 0"),
        (["invert", "{image}", "--prompt", "a", "--method", "m", "-o", "{i}"], "method: got 'm'"),
        (["invert", "{image}", "--prompt", "a", "--size", "big", "-o", "{i}"], "--size: got 'big'"),
        (
            ["invert", "{image}", "--prompt", "a", "--size", "500x130", "-o", "{i}"],
            "size: got 500x130, expected multiples of 32, which shapes needs; the nearest are"
            " 512x128",
        ),
        (["invert", "{image}", "--prompt", "a", "--fit", "f", "-o", "{i}"], "fit: got 'f'"),
        (
            ["reconstruct", "{wide}", "--paste-back", "{image}", "-o", "{o}"],
            "original: got 128x128, expected 200x136: give the image that was inverted",
        ),
        (["reconstruct", "{wide}", "--paste-back", "none", "-o", "{o}"], "none: no such file"),
        (["reconstruct", "none", "-o", "{o}"], "none: no such file; expected an inversion"),
        (["reconstruct", "{image}", "-o", "{o}"], "not a saved inversion"),
        (["reconstruct", "{saved}", "--steps", "9", "-o", "{o}"], "--steps: got 9, expected 4"),
        (["reconstruct", "{saved}", "--dtype", "int4", "-o", "{o}"], "--dtype: got 'int4'"),
        (["reconstruct", "{saved}", "--device", "warp", "-o", "{o}"], "warp"),
        (["reconstruct", "{saved}", "--backend", "b", "-o", "{o}"], "backend: got 'b'"),
        (["reconstruct", "{saved}", "--memory", "m", "-o", "{o}"], "memory: got 'm'"),
        (["reconstruct", "{saved}", "--execution", "e", "-o", "{o}"], "execution: got 'e'"),
        (
            ["reconstruct", "{saved}", "--device", "cpu", "--execution", "cuda-graph", "-o", "{o}"],
            "execution: got 'cuda-graph' on cpu",
        ),
        (["invert", "{image}", "--prompt", "a", "--noise-at", "n", "-o", "{i}"], "noise_at: got"),
        (["invert", "{image}", "--prompt", "a", "--early-stop", "x", "-o", "{i}"], "--early-stop"),
        (["edit", "{saved}", "--prompt", "a", "--start", "4", "-o", "{o}"], "start: got 4"),
        (
            [
                "edit",
                "{saved}",
                "--prompt",
                "a circle on snow",
                "--blend",
                "circle",
                "--blend-threshold",
                "1",
                "-o",
                "{o}",
            ],
            "blend_threshold: got 1.0",
        ),
        (
            ["attention", "{saved}", "--level", "9", "--place", "up", "-o", "{o}"],
            "attention: got cross at level 9 of up, expected cross or self at one of",
        ),
        (
            ["attention", "{saved}", "--components", "999", "-o", "{o}"],
            "components: got 999, expected 1 to 64",
        ),
        (
            ["attention", "{saved}", "--components", "1", "--words", "-o", "{o}"],
            "--components: got",
        ),
        (["attention", "{saved}", "--blend", "circle", "-o", "{o}"], "got no --prompt"),
        (
            [
                "edit",
                "{saved}",
                "--prompt",
                "a",
                "--paste-back",
                "{image}",
                "-o",
                "{folder}/x.SafeTensors",
            ],
            "--paste-back: got",
        ),
        (["generate", "a", "--size", "100", "-o", "{i}"], "size: got 100x100, expected multiples"),
        (["generate", "a", "--size", "native", "-o", "{i}"], "--size: got 'native'"),
        (["reconstruct", "{saved}", "--checkpoint", "{image}", "-o", "{o}"], "not a safetensors"),
        (["reconstruct", "{saved}", "-o", "{folder}"], "output: got the directory"),
        (["reconstruct", "{saved}", "-o", "{folder}/o.xyz"], "expected a name that ends in .png"),
        (["reconstruct", "{saved}", "--guidance", "nan", "-o", "{o}"], "guidance_scale: got nan"),
        (["edit", "{saved}", "--prompt", "a", "--mode", "m", "-o", "{o}"], "mode: got 'm'"),
        (["edit", "{saved}", "--prompt", "a", "--cross", "x", "-o", "{o}"], "--cross: got 'x'"),
        (["edit", "{saved}", "--prompt", "a", "--self", "2", "-o", "{o}"], "self_replace: got 2"),
        (["edit", "{saved}", "--prompt", "a", "--reweight", "x", "-o", "{o}"], "expected WORD="),
        (["edit", "{saved}", "--prompt", "a", "--blend", "dog", "-o", "{o}"], "'dog' is not in"),
        (["align", "a cat", "a big cat", "--mode", "replace"], "replace needs the same number of"),
        (["align", "a cat", "a big cat", "--mode", "m"], "mode: got 'm', expected one of auto"),
        (["inspect", "none"], "none: no such file"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(
    saved: Path,
    saved_wide: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    places = {
        "{saved}": str(saved),
        "{wide}": str(saved_wide),
        "{image}": str(sample_image("purple-circle")),
        "{o}": str(tmp_path / "o.png"),
        "{i}": str(tmp_path / "i.nti.safetensors"),
    }
    resolved = [places.get(a, a) for a in arguments]
    assert main([a.replace("{folder}", str(tmp_path)) for a in resolved]) == 2
    error = [x for x in capsys.readouterr().err.splitlines() if x.startswith("nti: error: ")]
    assert len(error) == 1 and message in error[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["invert"],
        ["invert", "x", "--steps", "x"],
        ["generate"],
    ],
)
def test_a_wrong_call_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("nti: error: ")


def test_an_interrupted_run_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(path: Path) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("nti.inspection.describe_file", interrupt)
    assert main(["inspect", "x"]) == 130
    assert capsys.readouterr().err == "nti: interrupted\n"
