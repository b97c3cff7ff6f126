"""Items that fail: each alone, by row and field, and nothing at all where that is asked for."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import nti
import nti.datasets.addresses
import nti.datasets.work
import nti.inversion.state
from nti import StableDiffusion
from nti.datasets.item import ManifestError
from nti.datasets.manifest import read_manifest
from nti.datasets.run import Here, run_manifest
from world import FAST, manifest_of, records


def test_items_that_fail_do_not_stop_the_others(model: StableDiffusion, folder: Path) -> None:
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:200])
    manifest = manifest_of(
        folder, {"image": "nowhere.png"}, {"blend": "horse:dog"}, {}, {}, {"edited_prompts": ""},
        count=5,
    )  # fmt: skip
    heard: list[str] = []
    out = folder / "out"
    summary = run_manifest(manifest, out, Here(model), settings=FAST, batch=4, warn=heard.append)
    assert (summary.done, summary.failed) == (2, 3)
    found = records(out)
    assert "row 1: image: got" in found["nowhere"]["error"]
    assert "row 2: blend: 'horse' is not in the prompt" in found["1"]["error"]
    assert "row 3: image: not an image that can be read" in found["2"]["error"]
    assert all("traceback" not in record for record in found.values())
    assert len(heard) == 2 and all("m.csv: row" in line for line in heard)


@pytest.mark.parametrize("editor", [5, None, True, ["p2p"], {}], ids=str)
def test_an_editor_that_is_no_text_fails_its_item(
    editor: object, model: StableDiffusion, folder: Path
) -> None:
    edits = [{"prompt": "a dog on a mat", "editor": editor}]
    rows = [{"image": "0.png", "prompt": "a cat on a mat", "edits": edits}]
    rows += [{"image": "1.png", "prompt": "a cat on a mat"}]
    (folder / "m.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    manifest = read_manifest(folder / "m.jsonl")
    summary = run_manifest(manifest, folder / "out", Here(model), settings=FAST)
    assert (summary.done, summary.failed) == (1, 1)
    assert "line 1: editor: got" in records(folder / "out")["0"]["error"]
    assert (folder / "out/summary.csv").is_file()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"edit_guidance_scale": "x"}, "edit_guidance_scale"),
        ({"size": "[1, 2]"}, "size"),
        ({"fit": "bogus"}, "fit"),
        ({"proximal": "x"}, "proximal"),
        ({"strength": "2", "editor": "sdedit"}, "strength"),
        ({"learning_rate": "fast"}, "learning_rate"),
        ({"mask": "nowhere.png"}, "mask"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_wrong_setting_is_named_before_the_work(
    change: dict[str, str], field: str, model: StableDiffusion, folder: Path
) -> None:
    heard: list[str] = []
    manifest = manifest_of(folder, change, count=1)
    run_manifest(manifest, folder / "out", Here(model), settings=FAST, warn=heard.append)
    assert f"m.csv: row 1: {field}: " in heard[0]
    assert f"row 1: {field}: " in records(folder / "out")["0"]["error"]


def test_settings_of_the_run_are_looked_at_first(model: StableDiffusion, folder: Path) -> None:
    for settings in ({"fit": "bogus"}, {"size": 60}, {"strength": 0.5}, {"editor": "x"}):
        with pytest.raises(ValueError, match=f"^{next(iter(settings))}: got"):
            run_manifest(manifest_of(folder), folder / "out", Here(model), settings=settings)
    assert not (folder / "out").exists()


def test_strict_reads_images_and_masks(model: StableDiffusion, folder: Path) -> None:
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:200])
    Image.new("L", (30, 20)).save(folder / "small.png")
    rows = ({"image": "broken.png"}, {"mask": "broken.png"}, {"mask": "small.png"})
    with pytest.raises(
        ManifestError, match=r"row 1: image: .*row 2: mask: .*row 3: mask: got 30x20 pixels"
    ):
        run_manifest(manifest_of(folder, *rows), folder / "out", Here(model), strict=True)


def test_a_remote_image_that_fails_fails_alone(
    model: StableDiffusion, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def cat_file(self, path: str) -> bytes:
            raise RuntimeError("status 500")

    monkeypatch.setattr(nti.datasets.addresses, "_system", lambda address: (Broken(), address))
    manifest = manifest_of(folder, {"image": "http://somewhere/a.png"}, count=2)
    summary = run_manifest(manifest, folder / "out", Here(model), settings=FAST)
    assert (summary.done, summary.failed) == (1, 1)
    assert "image: http://somewhere/a.png: cannot be read" in records(folder / "out")["a"]["error"]


def test_a_fault_of_an_item_is_recorded_with_its_traceback(
    model: StableDiffusion, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = nti.datasets.work._edited

    def edited(model: Any, work: Any, *rest: Any) -> Any:
        if work.item.id == "1":
            raise ZeroDivisionError("a fault")
        return real(model, work, *rest)

    monkeypatch.setattr(nti.datasets.work, "_edited", edited)
    summary = run_manifest(manifest_of(folder), folder / "out", Here(model), settings=FAST)
    assert (summary.done, summary.failed) == (3, 1)
    assert "ZeroDivisionError" in records(folder / "out")["1"]["traceback"]


def test_strict_makes_nothing_where_anything_is_wrong(model: StableDiffusion, folder: Path) -> None:
    manifest = manifest_of(folder, {"blend": "horse:dog"}, {"image": "nowhere.png"})
    with pytest.raises(ManifestError, match=r"row 1: blend: .*; .*row 2: image"):
        run_manifest(manifest, folder / "out", Here(model), settings=FAST, strict=True)
    assert not (folder / "out").exists()


def test_words_that_a_small_model_does_not_know_are_told(
    embedded: StableDiffusion, folder: Path
) -> None:
    heard: list[str] = []
    manifest = manifest_of(folder, count=1)
    run_manifest(manifest, folder / "out", Here(embedded), settings=FAST, warn=heard.append)
    assert "row 1: prompt: shapes was never trained on 'cat', 'mat'" in heard[0]
    assert "row 1: edited_prompts: shapes was never trained on 'dog', 'mat'" in heard[1]
    with pytest.raises(ManifestError, match="row 1: prompt"):
        run_manifest(manifest, folder / "o", Here(embedded), settings=FAST, strict=True)


def test_an_item_that_does_not_fit_alone_fails_alone(
    model: StableDiffusion, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: Any, **named: Any) -> Any:
        raise MemoryError("cannot allocate")

    monkeypatch.setattr(nti.datasets.work, "invert_batch", never)
    summary = run_manifest(manifest_of(folder), folder / "out", Here(model), settings=FAST, batch=2)
    assert summary.failed == 4


def test_a_folder_that_takes_nothing_is_refused(
    model: StableDiffusion, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Any) -> None:
        raise OSError(28, "out: No space left on device")

    monkeypatch.setattr(nti.datasets.addresses, "check_writable", full)
    with pytest.raises(OSError, match="No space left"):
        run_manifest(manifest_of(folder), folder / "out", Here(model), settings=FAST)
