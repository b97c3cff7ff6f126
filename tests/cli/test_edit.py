"""What `nti edit` says of its result."""

from pathlib import Path

import pytest

from nti.cli import main
from sample import CAPTION


def test_an_edit_that_changes_nothing_is_told_of(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "e.png")
    assert main(["edit", str(saved), "--prompt", CAPTION, "-o", out]) == 0
    assert "nti: warning: edit: 'a purple circle on snow' changes" in capsys.readouterr().err
