"""What a command tells, to whom, and that telling never fails it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from nti import Inversion
from nti.cli import main
from nti.cli.invert import state_path
from nti.cli.progress import Progress
from nti.demo import sample_image
from sample import CAPTION, FEW

NTI = [sys.executable, "-m", "nti"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def test_an_unprintable_character_loses_no_picture(saved: Path, tmp_path: Path) -> None:
    prompts = ["--prompt", "a green circle on snow \U0001f3a8", "--prompt", "a red circle on snow"]
    run = subprocess.run(
        [*NTI, "edit", str(saved), *prompts, "-o", str(tmp_path / "e.png")],
        env={**ENVIRONMENT, "PYTHONIOENCODING": "cp1252"}, capture_output=True, check=True,
    )  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e-1.png", "e-2.png"]
    assert rb"\U0001f3a8" in run.stdout and run.stdout.count(b"wrote") == 2


def test_full_and_closed_streams_stop_no_work(saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.png"
    command = f"exec {' '.join(NTI)} reconstruct {saved} -o {out}"
    for streams in (">/dev/full 2>/dev/full", ">&- 2>&-"):
        run = subprocess.run(["bash", "-c", f"{command} {streams}"], env=ENVIRONMENT)
        assert run.returncode == 0 and out.exists(), streams
        out.unlink()


def test_a_reader_that_has_seen_enough_is_no_error_but_a_full_disk_is() -> None:
    align = f"{' '.join(NTI)} align 'a cat' 'a dog'"
    script = f"{align} | true; echo ${{PIPESTATUS[0]}}; {align} >/dev/full; echo $?"
    run = subprocess.run(["bash", "-c", script], env=ENVIRONMENT, capture_output=True, text=True)
    assert run.stdout.split() == ["0", "2"]
    assert run.stderr == "mode: replace for 'a dog'\n" * 2 + (
        "nti: error: [Errno 28] stdout cannot be written: No space left on device\n"
    )


SLOW = ["--prompt", CAPTION, "--steps", "8", "--early-stop", "0", "--device", "cpu"]
IMAGE = str(sample_image("purple-circle"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What a run that nobody ends saves."""
    out = tmp_path_factory.mktemp("whole") / "x.safetensors"
    assert main(["invert", IMAGE, *SLOW, "-o", str(out)]) == 0
    return out.read_bytes()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_state_from_which_the_same_command_goes_on(
    tmp_path: Path,
    whole: bytes,
    number: signal.Signals,
    code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "x.safetensors"
    command = ["invert", IMAGE, *SLOW, "--json", "-o", str(out)]
    with subprocess.Popen(
        [*NTI, *command], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        assert run.stdout is not None and run.stderr is not None
        for line in run.stdout:
            if json.loads(line).get("iteration"):
                run.send_signal(number)
                break
        run.stdout.read()
        told = run.stderr.read().decode()
    assert run.returncode == code
    state = tmp_path / "x.safetensors.state"
    assert state.exists() and not out.exists()
    word = "interrupted" if code == 130 else "terminated"
    assert told.splitlines()[-1] == f"nti: {word}; the same command goes on from {state}"
    before = state.read_bytes()
    assert main(["invert", IMAGE, "--prompt", "a star", *SLOW[2:], "-o", str(out)]) == 2
    assert "got the state of another run (prompt" in capsys.readouterr().err
    assert state.read_bytes() == before
    assert main(command) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[0]["event"] == "progress" and events[0]["done"] > 8, "it went on"
    assert not state.exists() and out.read_bytes() == whole


def test_restart_begins_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.safetensors"
    command = ["invert", IMAGE, "--prompt", CAPTION, *FEW, "--method", "ddim", "-o", str(out)]
    state = state_path(out)
    state.write_bytes(b"nti-state-1, damaged")
    assert main(command) == 2
    told = capsys.readouterr().err
    assert "or give --restart" in told and "the same command goes on" not in told
    for wrong in (["--size", "5y"], ["--device", "warp"], ["--method", "m"]):
        assert main([*command, *wrong, "--restart"]) == 2
        assert state.read_bytes() == b"nti-state-1, damaged", "a typing error costs no state"
    assert main([*command, "--restart"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_restart_leaves_what_is_no_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.safetensors"
    command = ["invert", IMAGE, "--prompt", CAPTION, *FEW, "--restart", "-o", str(out)]
    state_path(out).write_text("precious")
    assert main(command) == 2
    assert "is no state of an inversion: move it away" in capsys.readouterr().err
    assert state_path(out).read_text() == "precious"
    state_path(out).unlink()
    os.mkfifo(state_path(out))
    assert main(command) == 2
    assert "got no file, expected the state of an inversion" in capsys.readouterr().err


def test_an_image_that_cannot_be_read_shows_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nti.model.load_model", None)
    out = str(tmp_path / "x.safetensors")
    assert main(["invert", "none.png", "--prompt", "a", "-o", out]) == 2
    assert "none.png: no such file" in capsys.readouterr().err


def test_what_cannot_be_stored_in_half_precision_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.safetensors"
    command = ["invert", IMAGE, "--prompt", CAPTION, *FEW, "-o", str(out)]
    refusal = ValueError("dtype: got float16, expected one that can hold all of uncond")

    def refuse(*_: object, **__: object) -> None:
        raise refusal

    with monkeypatch.context() as patch:
        patch.setattr("nti.inversion.inversion_file.encode", refuse)
        assert main([*command, "--store", "float16"]) == 2
    told = capsys.readouterr().err
    assert "expected one that can hold all of" in told
    assert f"without --store the same command goes on from {state_path(out)}" in told
    assert state_path(out).exists() and not out.exists()
    assert main([*command, "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["wrote"], "nothing is computed again"


def test_a_long_name_has_a_state_too(tmp_path: Path) -> None:
    out = tmp_path / f"{'n' * 239}.safetensors"
    image = str(sample_image("purple-circle"))
    method = ["--method", "ddim", "--store", "float16"]
    assert main(["invert", image, "--prompt", CAPTION, *FEW, *method, "-o", str(out)]) == 0
    assert [p.name for p in tmp_path.iterdir()] == [out.name]
    assert Inversion.load(out).prompt == CAPTION
    other = state_path(tmp_path / f"{'n' * 238}m.safetensors")
    assert len(state_path(out).name) < 200 and state_path(out) != other


EVENTS = {
    "progress": {"stage", "done", "total"},
    "wrote": {"path", "note"},
    "message": {"text"},
    "note": {"text"},
    "table": {"text"},
    "warning": {"message"},
    "error": {"message", "exit_code"},
}


def test_programs_are_told_in_json(
    saved: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nti.cli.progress.EVENT", 0.0)
    image, out = str(sample_image("purple-circle")), str(tmp_path / "x.safetensors")
    assert main(["invert", image, "--prompt", "a blurple cat", *FEW, "--json", "-o", out]) == 0
    assert main(["align", "a cat", "a dog", "--json"]) == 0
    assert main(["reconstruct", "none", "--json", "-o", str(tmp_path / "r.png")]) == 2
    assert main(["reconstruct", "--json", "--nonsense"]) == 2
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for event in events:
        assert event.keys() - {"event"} >= EVENTS[event["event"]]
    seen = {event["event"] for event in events}
    assert seen == {"progress", "wrote", "table", "warning", "error"}
    iterations = [event for event in events if event.get("iteration")]
    assert all(
        event["timestep"] in (751, 501, 251, 1) and event["loss"] > 0 and event["psnr"] > 0
        and event["seconds_left"] >= 0 and event["total"] == 44
        for event in iterations
    )  # fmt: skip
    assert len(iterations) == sum(Inversion.load(Path(out)).iterations)
    dones = [event["done"] for event in events if event["event"] == "progress"]
    assert dones == sorted(dones)


def test_quiet_is_quiet(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reconstruct", str(saved), "-q", "-o", str(tmp_path / "r.png")]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["edit", str(saved), "--prompt", "a cat", "-q", "-o", str(tmp_path / "e.png")]) == 0
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("nti: warning: shapes was never trained on 'cat'")


def test_a_log_gets_a_line_now_and_then(
    saved: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nti.cli.progress.LINE", 0.0)
    monkeypatch.setattr("nti.cli.progress.LONG", 0.0)
    image, out = str(sample_image("purple-circle")), str(tmp_path / "x.safetensors")
    assert main(["invert", image, "--prompt", CAPTION, *FEW, "-o", out]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("inverting: 1 of 44, timestep 1, at most") for line in lines)
    assert any("iteration 2, loss" in line and "dB from the pivot" in line for line in lines)
    assert sum(line.startswith("this will take 0 min") for line in lines) == 1


def test_a_fault_of_the_program_is_shown_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    for fault in (KeyError("x"), RecursionError("deep"), AssertionError(), shape):

        def fail(path: Path, fault: Exception = fault) -> str:
            raise fault

        monkeypatch.setattr("nti.inspection.describe_file", fail)
        assert main(["inspect", "x"]) == 1
        err = capsys.readouterr().err
        assert "Traceback" in err and "please report it" in err and type(fault).__name__ in err


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (MemoryError(), "MemoryError"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "CUDA out of memory. Tried"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "DefaultCPUAllocator: can't"),
    ],
    ids=["python", "cuda", "cpu"],
)
def test_memory_that_is_not_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: Exception,
    told: str,
) -> None:
    def fail(path: Path) -> str:
        raise fault

    monkeypatch.setattr("nti.inspection.describe_file", fail)
    assert main(["inspect", "x"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"nti: error: {told}")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_is_lost_ends_the_command_at_the_next_step(
    saved: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    code: int,
) -> None:
    """The interpreter drops what is raised inside a `__del__`."""

    def show(self: Progress, *arguments: Any) -> None:
        with contextlib.suppress(BaseException):
            signal.raise_signal(number)
        plain(self, *arguments)

    plain = Progress.show
    before = signal.getsignal(number)
    monkeypatch.setattr(Progress, "show", show)
    out = tmp_path / "r.png"
    assert main(["reconstruct", str(saved), "-o", str(out)]) == code
    assert not out.exists() and signal.getsignal(number) == before


@pytest.mark.parametrize("method", ["null-text", "ddim"])
def test_time_left_goes_to_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    method: str,
) -> None:
    monkeypatch.setattr("nti.cli.progress.EVENT", 0.0)
    monkeypatch.setattr("nti.cli.progress._median", lambda values: 1.0)  # seconds of every step
    options = ["--steps", "4", "--method", method]
    options += ["--early-stop", "0", "--inner-steps", "2"] if method == "null-text" else []
    out = str(tmp_path / "x.safetensors")
    assert main(["invert", IMAGE, "--prompt", CAPTION, *options, "--json", "-o", out]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    left = [event["seconds_left"] for event in events if event["event"] == "progress"]
    assert left == sorted(left, reverse=True) and left[-1] == 0
    assert left[0] == 3 + (4 * 2 if method == "null-text" else 4)


def test_align_tells_of_weights_in_other_syntax(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["align", "a cat", "a (cat:1.3)"]) == 0
    assert "nti: warning: '(cat:1.3)' in a prompt is plain text" in capsys.readouterr().err


def test_threads_spin_shortly_unless_the_user_wants_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that what is set below is taken back
        monkeypatch.delenv(name)
    assert main(["align", "a cat", "a dog"]) == 0
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert main(["align", "a cat", "a dog"]) == 0
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert main(["align", "a cat", "a dog"]) == 0
    assert "GOMP_SPINCOUNT" not in os.environ


def test_the_command_line_imports_no_torch_before_it_sets_the_policy() -> None:
    code = "import sys, nti.cli; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    started = time.monotonic()
    subprocess.run([*NTI, "--help"], capture_output=True, check=True)
    assert time.monotonic() - started < 5
