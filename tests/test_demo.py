"""The demo end to end, as a newcomer runs it, with fewer steps."""

import re
import subprocess
import sys
from pathlib import Path

from PIL import Image


def test_the_demo_makes_its_sheet_and_null_text_beats_plain_ddim(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nti", "demo", "-o", str(tmp_path), "--device", "cpu"]
    done = subprocess.run([*command, "--steps", "20"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("purple-circle", "circle-and-star"):
        found = dict(
            re.findall(rf"{name}: (autoencoder|DDIM|null-text)[^:]*: ([\d.]+) dB", done.stdout)
        )
        scores = {kind: float(value) for kind, value in found.items()}
        assert scores["autoencoder"] > 25
        assert scores["null-text"] > scores["DDIM"]
        assert scores["null-text"] > scores["autoencoder"] - 3
    edits = sorted(tmp_path.glob("*-edit-*.png"))
    assert len(edits) == len({p.read_bytes() for p in edits}) == 8
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        assert sheet.width > 5 * 192 and sheet.height > 6 * 192
