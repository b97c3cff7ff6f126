"""What the lesson's build is told wrongly, it says in a line before the work."""

import os
import subprocess
import sys
from pathlib import Path

BUILD = Path(__file__).parents[2] / "docs/lesson/build.py"


def refused(*given: object, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, str(BUILD), *map(str, given)],
        capture_output=True, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 2
    return done.stderr.strip().splitlines()[-1]


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert "expected a new or an empty folder" in refused("-o", tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_runtime_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dist").mkdir()
    message = refused("-o", tmp_path / "site", "--runtime", tmp_path / "dist")
    assert "got a folder without ort.wasm.min.mjs" in message


def test_without_npm_it_says_what_to_do(tmp_path: Path) -> None:
    message = refused("-o", tmp_path / "site", PATH=str(tmp_path))
    assert "npm: not found; install it, or name the unpacked package by --runtime" in message
