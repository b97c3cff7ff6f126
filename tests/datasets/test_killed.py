"""Runs whose process is killed: the same command goes on, here and on a cluster."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nti.datasets.item import Manifest
from world import COUNT, FAST, same_pictures

LONGEST = 240
"""Seconds, on a machine that does other things, too."""


@pytest.mark.parametrize(
    "cluster", [[], ["--ray", "local", "--workers", "2"]], ids=["here", "cluster"]
)
def test_what_is_killed_goes_on_where_it_was(
    cluster: list[str], manifest: Manifest, expected: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [
        sys.executable, "-m", "nti", "run", manifest.address, "-o", str(out), "--batch", "1",
        "--device", "cpu", *cluster,
        *(part for name, value in FAST.items() for part in ("--set", f"{name}={value}")),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + LONGEST
    while not list(out.glob("items/*/result.json")):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("items/*/result.json")}
    assert 0 < len(kept) < COUNT
    finished = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=LONGEST
    )
    assert finished.returncode == 0, finished.stderr
    assert f"{COUNT} done, 0 failed; {COUNT - len(kept)} made now" in finished.stdout
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert same_pictures(expected, out)
