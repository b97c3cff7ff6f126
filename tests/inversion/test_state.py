"""A run that ends early goes on where it was, and ends at the same bits."""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import nti
from nti import Inversion, InversionState, StableDiffusion, StateFile, StateFileError, Stopped
from nti.inversion.tensor_file import read_tensors, write_tensors
from tiny import TINY, make_model

SETTINGS = {"steps": 4, "inner_steps": 3, "threshold": lambda index, steps: 0.0}
EVENTS = 4 + 4 * (3 + 1)
"""What a watcher hears of such a run: steps of the pivot, iterations, and ends of timesteps."""


def run(
    model: StableDiffusion,
    image: torch.Tensor,
    state: StateFile | None = None,
    watch: Callable[[InversionState], object] | None = None,
    **changes: object,
) -> Inversion:
    settings = {"prompt": "a cat", **SETTINGS, **changes}
    return nti.invert(model, image, state=state, watch=watch, **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(model: StableDiffusion, image: torch.Tensor) -> Inversion:
    return run(model, image)


@pytest.mark.parametrize("after", [1, 4, 5, 6, 7, 8, 9, 14, EVENTS - 1, EVENTS])
def test_it_goes_on_from_any_event(
    model: StableDiffusion, image: torch.Tensor, whole: Inversion, after: int, tmp_path: Path
) -> None:
    heard = []

    def watch(now: InversionState) -> None:
        heard.append(now)
        if len(heard) == after:
            raise KeyboardInterrupt

    path = tmp_path / "x.state"
    with pytest.raises(KeyboardInterrupt):
        run(model, image, StateFile(path, every=1e9), watch)
    second: list[InversionState] = []
    assert run(model, image, StateFile(path), second.append) == whole
    assert len(second) == EVENTS - after, "nothing is computed twice"


def test_it_is_written_now_and_then_and_seldom(
    model: StableDiffusion, image: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    now = [0.0]
    state = StateFile(tmp_path / "x.state", every=2.0)
    monkeypatch.setattr("nti.inversion.state.time.monotonic", lambda: now[0])
    state._due = 2.0

    def slow() -> bool:
        written.append(now[0])
        now[0] += 0.05  # so much that 5 seconds without it make it 1 %
        return True

    def tick(_: object) -> None:
        now[0] += 0.5

    monkeypatch.setattr(state, "flush", slow)
    run(model, image, state, tick)
    assert written[0] == 2.0 and written[1] == pytest.approx(2.05 + 5.0, abs=0.5)


def test_stopping_by_the_callback_keeps_the_state(
    model: StableDiffusion, image: torch.Tensor, whole: Inversion, tmp_path: Path
) -> None:
    path = tmp_path / "x.state"
    with pytest.raises(Stopped):
        run(model, image, StateFile(path), callback=lambda done, total: done == 6)
    second: list[InversionState] = []
    assert run(model, image, StateFile(path), second.append) == whole
    assert len(second) == 2 * (3 + 1), "the pivot and two timesteps were done"
    state = StateFile(path)
    state.remove()
    assert not path.exists()
    state.remove()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"prompt": "a dog"}, r'prompt \["a cat"\]\), expected this one\'s \(prompt \["a dog"\]'),
        ({"inner_steps": 2}, r"inner_steps 3\), expected this one's \(inner_steps 2\)"),
        ({"guidance_scale": 2.0}, "guidance_scale 7.5"),
        ({"learning_rate": lambda i, t: 0.1}, "learning_rate"),
        ({"steps": 5}, "steps 4"),
    ],
    ids=["prompt", "inner_steps", "guidance", "rule", "steps"],
)
def test_another_run_is_refused_and_the_state_is_left(
    model: StableDiffusion,
    image: torch.Tensor,
    changes: dict[str, object],
    told: str,
    tmp_path: Path,
) -> None:
    path = tmp_path / "x.state"
    with pytest.raises(Stopped):
        run(model, image, StateFile(path), callback=lambda done, total: done == 6)
    before = path.read_bytes()
    with pytest.raises(StateFileError, match=told):
        run(model, image, StateFile(path), **changes)
    with pytest.raises(StateFileError, match="image_sha256"):
        run(model, image.flip(-1), StateFile(path))
    assert path.read_bytes() == before


def test_a_damaged_state_is_refused(
    model: StableDiffusion, image: torch.Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "x.state"
    with pytest.raises(Stopped):
        run(model, image, StateFile(path), callback=lambda done, total: done == 6)
    sound = path.read_bytes()
    assert read_tensors(path, "state").verified
    for cut in (sound[:-9], sound[:40], b"", sound[:-1] + bytes([sound[-1] ^ 1])):
        path.write_bytes(cut)
        with pytest.raises(StateFileError, match=f"{path}: cannot be gone on from .*--restart"):
            run(model, image, StateFile(path))


def test_a_state_that_cannot_be_written_does_not_stop_the_run(
    model: StableDiffusion, image: torch.Tensor, whole: Inversion, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    state = StateFile(tmp_path / "file" / "x.state", every=0.0)
    with pytest.warns(UserWarning, match="state cannot be kept") as warned:
        assert run(model, image, state) == whole
    assert len(warned) == 1


def test_two_runs_do_not_share_a_state(
    model: StableDiffusion, image: torch.Tensor, whole: Inversion, tmp_path: Path
) -> None:
    path = tmp_path / "x.state"

    def second(_: object) -> None:
        with pytest.raises(StateFileError, match="another run is writing this state"):
            run(model, image, StateFile(path, restart=True))

    assert run(model, image, StateFile(path, every=0.0), second) == whole
    assert [left.name for left in tmp_path.iterdir()] == ["x.state"], "the lock is gone"


def test_the_same_weights_with_another_schedule_are_another_run(
    image: torch.Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "x.state"
    with pytest.raises(Stopped):
        run(make_model(), image, StateFile(path), callback=lambda done, total: done == 6)
    schedule = dataclasses.replace(TINY.schedule, beta_start=0.0005)
    other = make_model(dataclasses.replace(TINY, schedule=schedule))
    with pytest.raises(StateFileError, match="got the state of another run .networks"):
        run(other, image, StateFile(path))


Forgery = Callable[[dict[str, torch.Tensor], dict[str, Any]], object]

FORGERIES: dict[str, Forgery] = {
    "no pivot": lambda t, h: t.update(pivot=t["pivot"][:0]),
    "half": lambda t, h: t.update({k: v.half() for k, v in t.items() if v.dtype != torch.bool}),
    "half pivot": lambda t, h: t.update(pivot=t["pivot"].half()),
    "flat": lambda t, h: t.update(latents=t["latents"].flatten()),
    "no latents": lambda t, h: t.update(latents=t["latents"][:0]),
    "fewer losses": lambda t, h: t.update(losses=t["losses"][:1]),
    "other batch": lambda t, h: t.update({"timestep.mean": t["timestep.mean"].repeat(2, 1, 1)}),
    "iteration": lambda t, h: h.update(iterations=9),
    "negative": lambda t, h: h.update(iterations=-1),
    "words": lambda t, h: h.update(iterations="x"),
    "stage": lambda t, h: h.pop("stage"),
    "missing": lambda t, h: t.pop("timestep.square"),
    "unknown": lambda t, h: t.update(x=t["pivot"].clone()),
    "another latent": lambda t, h: t.update(pivot=t["pivot"] + 1),
    "half a pivot": lambda t, h: t.update(pivot=t["pivot"][:3]),
    "long pivot": lambda t, h: t.update(pivot=t["pivot"].repeat(2, 1, 1, 1, 1)),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_state_is_refused(
    model: StableDiffusion, image: torch.Tensor, name: str, tmp_path: Path
) -> None:
    """With a digest that is right."""
    path = tmp_path / "x.state"
    heard: list[InversionState] = []

    def watch(now: InversionState) -> None:
        heard.append(now)
        if len(heard) == 4 + 2 * (3 + 1) + 2:  # in the second iteration of the third timestep
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, image, StateFile(path), watch)
    found = read_tensors(path, "state")
    tensors, header = dict(found.tensors), dict(found.header)
    tensors = {key: values.clone() for key, values in tensors.items()}
    FORGERIES[name](tensors, header)
    write_tensors(path, "state", header, tensors)
    with pytest.raises(ValueError, match="cannot be gone on from|state: got"):
        run(model, image, StateFile(path))


KILLED = """
import os, sys
import torch
import nti
from nti.demo import sample_image

torch.set_num_threads(1)
model = nti.load_model(device="cpu")
output, loud = sys.argv[1], os.fdopen(int(sys.argv[2]), "w", buffering=1)

def invert(state):
    return nti.invert(
        model, sample_image("purple-circle"), "a purple circle on snow", steps=5, inner_steps=6,
        threshold=lambda index, steps: 0.0, state=state,
    )

invert(None).save(output + "-whole")
while True:  # a new process each time, with what is slow already done
    child = os.fork()
    if child == 0:
        state = nti.StateFile(output + ".state", every=0.0)
        invert(state).save(output)
        state.remove()
        os._exit(0)
    print(child, file=loud)
    if os.waitpid(child, 0)[1] == 0:
        break
print("done", file=loud)
"""


def test_twenty_kills_change_no_bit(tmp_path: Path) -> None:
    output = tmp_path / "x"
    reading, writing = os.pipe()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(output), str(writing)]
    draw, kills = random.Random(0), 0
    with (
        subprocess.Popen(command, pass_fds=[writing], env=environment),
        os.fdopen(reading) as heard,
    ):
        os.close(writing)
        for line in heard:
            if line.strip() == "done":
                break
            if kills < 20:
                time.sleep(draw.uniform(0.0, 0.15))
                os.kill(int(line), signal.SIGKILL)
                kills += 1
    assert kills == 20
    assert output.read_bytes() == Path(f"{output}-whole").read_bytes()
    left = {path.name for path in tmp_path.iterdir()} - {"x", "x-whole"}
    assert all(name.endswith(".nti-part") for name in left), left
