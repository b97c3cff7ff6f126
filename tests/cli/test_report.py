"""`nti report`."""

from pathlib import Path

import pytest
from PIL import Image

from nti.cli import main
from nti.demo import sample_image


def test_a_page_is_written_again_and_nothing_else_is_destroyed(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "report.html"
    given = ["report", str(saved), "-o", str(page), "--image", str(sample_image("purple-circle"))]
    assert main(given) == 0
    edit = ["--prompt", "a purple heart on snow", "--blend", "circle:heart"]
    assert main([*given, *edit]) == 0
    assert "the photograph" in page.read_text("utf-8")
    assert "a purple heart on snow" in page.read_text("utf-8")
    page.write_text("my own page")
    assert main(given) == 2
    assert page.read_text() == "my own page"
    assert "no report that nti wrote" in capsys.readouterr().err


def test_what_does_not_fit_is_said(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*given: str) -> str:
        assert main(["report", str(saved), *given]) == 2
        return capsys.readouterr().err

    assert "ends in .html" in told("-o", str(tmp_path / "report.png"))
    page = str(tmp_path / "x.html")
    assert "--guidance: got 9.0, expected none" in told("-o", page, "--guidance", "9")
    assert "--blend: got no --prompt" in told("-o", page, "--blend", "circle")
    other = tmp_path / "small.png"
    Image.new("RGB", (20, 30)).save(other)
    assert "got 20x30, expected 128x128" in told("-o", page, "--image", str(other))
    assert not Path(page).exists()
