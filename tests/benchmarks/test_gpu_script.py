"""What `benchmarks/gpu.sh` runs and says, with a stand-in for Python."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/gpu.sh"
SECTIONS = [
    "checks", "self-check", "kernels-tests", "inversion", "step", "edit", "kernels", "load",
    "compile",
]  # fmt: skip
PARTS = 8

STAND_IN = """#!/bin/sh
echo "$@" >> "$CALLS"
echo "said: $@"
for each in $BROKEN; do case "$*" in *"$each"*) exit 3;; esac; done
"""


@dataclass(frozen=True)
class Run:
    """What a run of the script left."""

    code: int
    said: str
    calls: list[str]
    out: Path


def run(folder: Path, *sections: str, broken: str = "") -> Run:
    """Call the script from another folder than its own."""
    stand_in = folder / "bin/python"
    stand_in.parent.mkdir()
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    calls = folder / "calls"
    calls.touch()
    given = {"PATH": f"{stand_in.parent}:{os.environ['PATH']}", "CALLS": str(calls)}
    done = subprocess.run(
        ["bash", str(SCRIPT), "results", *sections],
        cwd=folder,
        env=os.environ | given | {"BROKEN": broken},
        capture_output=True,
        text=True,
    )
    lines = calls.read_text().splitlines()
    return Run(done.returncode, done.stdout + done.stderr, lines, folder / "results")


def section_of(call: str) -> str:
    if "-m pytest" in call:
        return "kernels-tests" if "--part" in call else "checks"
    return "self-check" if call.startswith("-c ") else call.split()[-1]


def test_all_sections_run_in_order(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.code == 0, done.said
    ran = [section_of(call) for call in done.calls]
    assert list(dict.fromkeys(ran)) == SECTIONS
    assert ran.count("kernels-tests") == PARTS and len(ran) == len(SECTIONS) + PARTS - 1
    parts = {call.split()[call.split().index("--part") + 1] for call in done.calls[2 : PARTS + 2]}
    assert parts == {f"{i}/{PARTS}" for i in range(1, PARTS + 1)}
    assert all(f"--out {done.out}" in call for call in done.calls[PARTS + 2 :])


def test_sections_can_be_run_apart(tmp_path: Path) -> None:
    done = run(tmp_path, "load", "step")
    assert done.code == 0
    assert [section_of(call) for call in done.calls] == ["load", "step"]
    assert "load" in (done.out / "load.txt").read_text()


@pytest.mark.parametrize(
    ("broken", "failed"),
    [("--ignore", "checks"), ("3/8", "kernels-tests"), ("step", "step"), ("compile", "compile")],
)
def test_a_section_that_fails_stops_no_other_and_is_told(
    tmp_path: Path, broken: str, failed: str
) -> None:
    done = run(tmp_path, broken=broken)
    assert done.code == 1
    assert list(dict.fromkeys(map(section_of, done.calls))) == SECTIONS
    assert done.said.splitlines()[-1] == f"failed: {failed}"
    logs = [log for log in done.out.glob("*.txt") if "failed or ran out" in log.read_text()]
    assert len(logs) == 1 and logs[0].name.startswith(failed)
    assert "said: " in logs[0].read_text(), "what was said before is kept"


@pytest.mark.parametrize("sections", [("step", "nothing"), ("check",), ("checks kernels-tests",)])
def test_a_section_that_is_none_is_refused_before_any_runs(
    tmp_path: Path, sections: tuple[str, ...]
) -> None:
    done = run(tmp_path, *sections)
    assert done.code == 2 and not done.calls
    assert "sections: checks self-check kernels-tests" in done.said
