"""`nti attention` heeds each of its options, or says why it cannot."""

from pathlib import Path

import pytest
from PIL import Image

from nti.cli import main


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--guidance", "2"], "--guidance"),
        (["--mode", "refine"], "--mode"),
        (["--self", "0.3"], "--self"),
        (["--cross", "0.3"], "--cross"),
        (["--blend-start", "0"], "--blend-start"),
        (["--blend-threshold", "0.1"], "--blend-threshold"),
        (["--reweight", "circle=2", "--subtract", "snow"], "--subtract, --reweight"),
        (["--components", "2", "--guidance", "2"], "--guidance"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_what_only_edits_read_is_refused_without_one(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], named: str
) -> None:
    out = tmp_path / "a.png"
    assert main(["attention", str(saved), *options, "-o", str(out)]) == 2
    message = f"nti: error: {named}: got no --prompt, expected an edited prompt"
    assert message in capsys.readouterr().err and not out.exists()


def test_the_maps_of_an_edit_are_those_of_its_options(saved: Path, tmp_path: Path) -> None:
    def drawn(*options: str) -> bytes:
        prompt = ["--words", "--prompt", "a green circle on snow", "--cross", "0.2"]
        out = tmp_path / "a.png"
        assert main(["attention", str(saved), *prompt, *options, "-o", str(out)]) == 0
        with Image.open(out) as image:
            return image.tobytes()

    plain = drawn()
    assert drawn("--self", "0.5", "--mode", "auto") == plain
    for options in (["--guidance", "1"], ["--self", "1"], ["--mode", "refine"]):
        assert drawn(*options) != plain, options
