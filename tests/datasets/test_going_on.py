"""Runs that go on: what is done is not made again, what is not is made as it would have been."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import nti
import nti.datasets.addresses
import nti.datasets.work
import nti.inversion.state
from nti import StableDiffusion
from nti.datasets.manifest import read_manifest
from nti.datasets.results import RunError
from nti.datasets.run import Here, Progress, run_manifest
from nti.datasets.work import Keep
from world import FAST, manifest_of, records, same_pictures


def test_a_run_that_is_done_does_nothing_again(model: StableDiffusion, folder: Path) -> None:
    out, manifest = folder / "out", manifest_of(folder)
    run_manifest(manifest, out, Here(model), settings=FAST)
    before = {path: path.stat().st_mtime_ns for path in (out / "items").rglob("*.*")}
    summary = run_manifest(manifest, out, Here(model), settings=FAST)
    assert (summary.done, summary.made) == (4, 0)
    assert before == {path: path.stat().st_mtime_ns for path in (out / "items").rglob("*.*")}


@pytest.mark.parametrize("end", [KeyboardInterrupt, OSError], ids=["ended", "disk-full"])
@pytest.mark.parametrize("at", range(1, 13, 3))
def test_a_run_that_ends_at_any_write_goes_on_to_the_same(
    model: StableDiffusion,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: int,
    end: type[BaseException],
) -> None:
    manifest, whole, out = manifest_of(folder, count=3), folder / "whole", folder / "out"
    run_manifest(manifest, whole, Here(model), settings=FAST, batch=2)
    writes, real = [0], nti.datasets.addresses.LocalFolder.write

    def write(self: Any, name: str, data: bytes) -> None:
        if name.startswith("items"):
            writes[0] += 1
            if writes[0] == at:
                raise end("the disk is full")
        real(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(nti.datasets.addresses.LocalFolder, "write", write)
        with pytest.raises(end):
            run_manifest(manifest, out, Here(model), settings=FAST, batch=2)
    done = {id for id, record in records(out).items() if record["status"] == "done"}
    kept = {id: (out / f"items/{id}/result.json").stat().st_mtime_ns for id in done}
    assert len(done) == (at - 1) // 4
    run_manifest(manifest, out, Here(model), settings=FAST, batch=2)
    assert same_pictures(whole, out)
    assert kept == {id: (out / f"items/{id}/result.json").stat().st_mtime_ns for id in done}


def test_a_batch_that_was_not_finished_is_made_whole(
    model: StableDiffusion, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a batch's images round to may depend on how many they are."""
    out, manifest = folder / "out", manifest_of(folder)
    run_manifest(manifest, out, Here(model), settings=FAST, batch=2)
    (out / "items/1/result.json").unlink()
    real, sizes = nti.datasets.work.invert_batch, []

    def counted(model: Any, images: Sequence[Any], *rest: Any, **named: Any) -> Any:
        sizes.append(len(images))
        return real(model, images, *rest, **named)

    monkeypatch.setattr(nti.datasets.work, "invert_batch", counted)
    assert run_manifest(manifest, out, Here(model), settings=FAST, batch=2).made == 1
    assert sizes == [2]


def test_a_record_that_is_cut_short_counts_as_none(model: StableDiffusion, folder: Path) -> None:
    out, manifest = folder / "out", manifest_of(folder, count=2)
    run_manifest(manifest, out, Here(model), settings=FAST)
    path = out / "items/1/result.json"
    path.write_bytes(path.read_bytes()[:50])
    assert run_manifest(manifest, out, Here(model), settings=FAST).made == 1


def test_a_row_that_was_changed_is_made_again(model: StableDiffusion, folder: Path) -> None:
    out = folder / "out"
    run_manifest(manifest_of(folder), out, Here(model), settings=FAST)
    changed = manifest_of(folder, {}, {"edited_prompts": "a cow on a mat"}, count=5)
    assert run_manifest(changed, out, Here(model), settings=FAST).made == 2
    assert records(out)["1"]["edits"][0]["prompt"] == "a cow on a mat"


def test_what_is_done_stays_done_where_its_row_can_no_longer_be_made(
    model: StableDiffusion, folder: Path
) -> None:
    out, manifest = folder / "out", manifest_of(folder, count=2)
    run_manifest(manifest, out, Here(model), settings=FAST)
    (folder / "1.png").rename(folder / "away.png")
    summary = run_manifest(manifest, out, Here(model), settings=FAST)
    assert (summary.done, summary.failed, summary.made) == (2, 0, 0)
    (folder / "2.png").rename(folder / "1.png")  # another picture of the same name
    assert run_manifest(manifest, out, Here(model), settings=FAST).made == 1


def test_a_picture_that_is_gone_is_made_again(model: StableDiffusion, folder: Path) -> None:
    out, manifest = folder / "out", manifest_of(folder, count=2)
    run_manifest(manifest, out, Here(model), settings=FAST)
    (out / "items/1/edit-1.png").unlink()
    assert run_manifest(manifest, out, Here(model), settings=FAST).made == 1


def test_another_working_folder_is_the_same_run(
    model: StableDiffusion, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest_of(folder, count=1)
    run_manifest(read_manifest(folder / "m.csv"), folder / "out", Here(model), settings=FAST)
    monkeypatch.chdir(folder)
    again = run_manifest(read_manifest("m.csv"), folder / "out", Here(model), settings=FAST)
    assert again.made == 0


def test_a_neighbour_that_fails_does_not_cost_the_others_again(
    model: StableDiffusion, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "1.png").write_bytes(b"nothing")
    out, manifest = folder / "out", manifest_of(folder)
    run_manifest(manifest, out, Here(model), settings=FAST, batch=4)
    real, sizes = nti.datasets.work.invert_batch, []

    def counted(model: Any, images: Sequence[Any], *rest: Any, **named: Any) -> Any:
        sizes.append(len(images))
        return real(model, images, *rest, **named)

    monkeypatch.setattr(nti.datasets.work, "invert_batch", counted)
    run_manifest(manifest, out, Here(model), settings=FAST, batch=4)
    assert sizes == [1]


def test_another_batch_may_be_asked_for(model: StableDiffusion, folder: Path) -> None:
    out, manifest = folder / "out", manifest_of(folder, count=1)
    run_manifest(manifest, out, Here(model), settings=FAST, batch=4)
    run_manifest(manifest_of(folder), out, Here(model), settings=FAST, batch=1)
    assert json.loads((out / "run.json").read_text())["batch"] == 1


def test_another_captioner_is_another_run(model: StableDiffusion, folder: Path) -> None:
    class Captioner:
        def __init__(self, digest: str) -> None:
            self.digest = digest

        def __call__(self, pictures: Sequence[Image.Image]) -> list[str]:
            return ["a cat on a mat"] * len(pictures)

    manifest, said = manifest_of(folder, {"prompt": ""}, count=1), []
    first = Here(model, captioner=Captioner("a"))
    run_manifest(manifest, folder / "out", first, settings=FAST, say=said.append)
    assert said == ["0: a cat on a mat"]
    with pytest.raises(RunError, match="captioner"):
        run_manifest(manifest, folder / "out", Here(model, captioner=Captioner("b")), settings=FAST)


def test_a_failed_item_is_tried_again(model: StableDiffusion, folder: Path) -> None:
    out, good = folder / "out", (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(b"nothing")
    run_manifest(manifest_of(folder), out, Here(model), settings=FAST)
    (folder / "1.png").write_bytes(good)
    summary = run_manifest(manifest_of(folder), out, Here(model), settings=FAST)
    assert (summary.done, summary.failed, summary.made) == (4, 0, 1)


@pytest.mark.parametrize(
    ("settings", "keep"),
    [
        ({"steps": 2, "method": "ddim"}, Keep()),
        ({"steps": 3, "inner_steps": 1}, Keep()),
        (FAST, Keep(True)),
    ],
    ids=["method", "steps", "keep"],
)
def test_another_runs_folder_is_refused(
    model: StableDiffusion, folder: Path, settings: dict[str, Any], keep: Keep
) -> None:
    out, manifest = folder / "out", manifest_of(folder, count=1)
    run_manifest(manifest, out, Here(model), settings=FAST)
    with pytest.raises(RunError, match="results of another run"):
        run_manifest(manifest, out, Here(model), settings=settings, keep=keep)


def test_other_weights_and_strange_folders_are_refused(
    model: StableDiffusion, embedded: StableDiffusion, folder: Path
) -> None:
    manifest = manifest_of(folder, count=1)
    run_manifest(manifest, folder / "out", Here(model), settings=FAST)
    with pytest.raises(RunError, match=r"another run \(weights"):
        run_manifest(manifest, folder / "out", Here(embedded), settings=FAST)
    with pytest.raises(RunError, match="which holds 0.png"):
        run_manifest(manifest, folder, Here(model), settings=FAST)
    with pytest.raises(ValueError, match="got the file"):
        run_manifest(manifest, folder / "0.png", Here(model), settings=FAST)


def test_two_runs_do_not_share_a_folder(model: StableDiffusion, folder: Path) -> None:
    manifest, out = manifest_of(folder, count=2), folder / "out"
    refused: list[str] = []

    def another(state: Progress) -> None:
        with pytest.raises(RunError, match="another run is writing") as error:
            run_manifest(manifest, out, Here(model), settings=FAST)
        refused.append(str(error.value))

    run_manifest(manifest, out, Here(model), settings=FAST, batch=1, progress=another)
    assert len(refused) == 2


def test_a_caption_that_was_found_does_not_make_an_item_anew(
    model: StableDiffusion, folder: Path
) -> None:
    manifest = manifest_of(folder, {"prompt": ""}, count=1)
    here = Here(model, captioner=lambda pictures: ["a cat on a mat"])
    run_manifest(manifest, folder / "out", here, settings=FAST)
    assert run_manifest(manifest, folder / "out", here, settings=FAST).made == 0


def test_a_state_that_was_left_is_gone_on_from(
    model: StableDiffusion, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, manifest = folder / "out", manifest_of(folder, count=1)
    slow = {"steps": 6, "inner_steps": 2}
    steps, real, last = [0], nti.inversion.state.StateFile.keep, [0]

    def keep(self: Any, state: Any) -> None:
        real(self, state)
        steps[0] += 1
        if steps[0] == last[0]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(nti.inversion.state.StateFile, "keep", keep)
        whole = folder / "whole"
        run_manifest(manifest, whole, Here(model, output=whole), settings=slow)
    total, last[0], steps[0] = steps[0], 10, 0

    with monkeypatch.context() as patch:
        patch.setattr(nti.inversion.state.StateFile, "keep", keep)
        with pytest.raises(KeyboardInterrupt):
            run_manifest(manifest, out, Here(model, output=out), settings=slow)
    assert list((out / ".nti-states").glob("*.state"))
    counted: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(nti.inversion.state.StateFile, "keep", lambda self, state: counted.append(1))
        run_manifest(manifest, out, Here(model, output=out), settings=slow)
    assert len(counted) == total - 10 and same_pictures(folder / "whole", out)
    assert not list((out / ".nti-states").glob("*.state"))


def test_a_damaged_state_only_costs_its_time(model: StableDiffusion, folder: Path) -> None:
    out, manifest = folder / "out", manifest_of(folder, count=1)
    here = Here(model, output=out)
    run_manifest(manifest, folder / "whole", Here(model), settings=FAST)
    out.mkdir()
    (out / ".nti-states").mkdir()
    state = here._state([manifest.items[0].merged(FAST)])
    assert state is not None
    state.path.write_bytes(b"nothing")
    assert run_manifest(manifest, out, here, settings=FAST).done == 1
    assert same_pictures(folder / "whole", out) and not state.path.exists()
