"""Runs over a manifest: item by item, durable, going on, failing alone."""

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import nti
import nti.datasets.addresses
import nti.datasets.work
import nti.inversion.state
from nti import Inversion, StableDiffusion, load_image, to_pil
from nti.datasets.addresses import open_folder
from nti.datasets.item import Manifest, ManifestError
from nti.datasets.manifest import read_manifest
from nti.datasets.results import Results, RunError
from nti.datasets.run import Here, Progress, batched, run_manifest
from nti.datasets.work import Keep
from world import same_pictures, write_rows

FAST = {"steps": 2, "inner_steps": 1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of noise, each another."""
    for number in range(5):
        generator = torch.Generator().manual_seed(number)
        pixels = torch.randint(0, 256, (64 * 64 * 3,), generator=generator)
        Image.frombytes("RGB", (64, 64), bytes(pixels.tolist())).save(tmp_path / f"{number}.png")
    return tmp_path


def manifest_of(folder: Path, *changes: dict[str, Any], count: int = 4) -> Manifest:
    rows = [
        {"image": f"{n}.png", "prompt": "a cat on a mat", "edited_prompts": "a dog on a mat"}
        for n in range(count)
    ]
    for row, change in zip(rows, changes, strict=False):
        row.update(change)
    return read_manifest(write_rows(folder / "m.csv", rows))


def records(out: Path) -> dict[str, dict[str, Any]]:
    results = Results(open_folder(str(out)))
    found = {path.name: results.record(path.name) for path in (out / "items").glob("*")}
    return {id: record for id, record in found.items() if record is not None}


def test_each_item_is_kept_with_what_made_it(model: StableDiffusion, folder: Path) -> None:
    out = folder / "out"
    summary = run_manifest(manifest_of(folder), out, Here(model), settings=FAST, batch=2)
    assert (summary.done, summary.failed, summary.made) == (4, 0, 4)
    found = records(out)["1"]
    assert found["settings"] == FAST and found["edits"][0]["prompt"] == "a dog on a mat"
    assert found["iterations"] == 2 and found["warnings"] == []
    assert sorted(found["files"]) == ["edit-1.png", "reconstruction.png", "source.png"]
    with (out / "summary.csv").open(newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["done"] * 4
    assert Image.open(out / "sheet.png").size[1] > 4 * 128


def test_what_is_made_is_what_single_commands_make(model: StableDiffusion, folder: Path) -> None:
    out = folder / "out"
    run_manifest(
        manifest_of(folder, count=1), out, Here(model), settings=FAST, batch=1, keep=Keep(True)
    )
    kept = Inversion.load(out / "items/0/inversion.nti.safetensors")
    alone = nti.invert(model, folder / "0.png", "a cat on a mat", **FAST)
    assert kept == alone
    edited = nti.edit(model, alone, "a dog on a mat").images[0]
    with Image.open(out / "items/0/edit-1.png") as image:
        assert image.tobytes() == edited.tobytes()


def test_an_item_without_edits_keeps_its_inversion(model: StableDiffusion, folder: Path) -> None:
    manifest = manifest_of(folder, {"edited_prompts": ""}, count=1)
    run_manifest(manifest, folder / "out", Here(model), settings=FAST, keep=Keep(dtype="float16"))
    path = folder / "out/items/0/inversion.nti.safetensors"
    assert Inversion.load(path).steps == 2


def test_edits_with_settings_of_their_own_are_each_made_by_them(
    model: StableDiffusion, folder: Path
) -> None:
    edits = [
        {"prompt": "a dog on a mat"},
        {"prompt": "a dog on a mat", "cross_replace": 0.0, "self_replace": 0.0},
        {"prompt": "a dog on a mat", "editor": "sdedit", "strength": 1.0},
        {"prompt": "a dog on a mat", "guidance_scale": 1.0},
    ]
    row = {"id": "x", "image": "0.png", "prompt": "a cat on a mat", "edits": edits}
    (folder / "m.jsonl").write_text(json.dumps(row))
    run_manifest(read_manifest(folder / "m.jsonl"), folder / "out", Here(model), settings=FAST)
    made = [Image.open(folder / f"out/items/x/edit-{n}.png").tobytes() for n in range(1, 5)]
    inversion = nti.invert(model, folder / "0.png", "a cat on a mat", **FAST)
    prompt = "a dog on a mat"
    together = nti.edit(
        model, inversion, [prompt] * 2, cross_replace=[0.8, 0.0], self_replace=[0.5, 0.0]
    ).images
    others = [
        nti.sdedit(model, inversion, prompt, strength=1.0).images[0],
        nti.edit(model, inversion, prompt, guidance_scale=1.0).images[0],
    ]
    assert made == [image.tobytes() for image in (*together, *others)]
    assert len(set(made)) == 4


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


def test_what_only_the_runs_editor_reads_is_not_for_others(
    model: StableDiffusion, folder: Path
) -> None:
    manifest = manifest_of(folder, {"editor": "sdedit"}, {"method": "ddim"}, count=2)
    settings = {**FAST, "cross_replace": 0.4, "learning_rate": 0.01}
    summary = run_manifest(manifest, folder / "out", Here(model), settings=settings)
    assert (summary.done, summary.failed) == (2, 0)
    found = records(folder / "out")
    assert found["0"]["edits"][0]["settings"] == {"editor": "sdedit"}
    assert found["1"]["settings"] == {"steps": 2, "method": "ddim"}


def test_strict_reads_images_and_masks(model: StableDiffusion, folder: Path) -> None:
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:200])
    Image.new("L", (30, 20)).save(folder / "small.png")
    rows = ({"image": "broken.png"}, {"mask": "broken.png"}, {"mask": "small.png"})
    with pytest.raises(
        ManifestError, match=r"row 1: image: .*row 2: mask: .*row 3: mask: got 30x20 pixels"
    ):
        run_manifest(manifest_of(folder, *rows), folder / "out", Here(model), strict=True)


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


def test_a_failed_item_is_tried_again(model: StableDiffusion, folder: Path) -> None:
    out, good = folder / "out", (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(b"nothing")
    run_manifest(manifest_of(folder), out, Here(model), settings=FAST)
    (folder / "1.png").write_bytes(good)
    summary = run_manifest(manifest_of(folder), out, Here(model), settings=FAST)
    assert (summary.done, summary.failed, summary.made) == (4, 0, 1)


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


def test_progress_says_how_far_it_is(model: StableDiffusion, folder: Path) -> None:
    heard: list[Progress] = []
    manifest = manifest_of(folder, {"image": "nowhere.png"})
    run_manifest(
        manifest, folder / "out", Here(model), settings=FAST, batch=1, progress=heard.append
    )
    assert [(p.done, p.failed, p.total) for p in heard] == [(1, 1, 4), (2, 1, 4), (3, 1, 4)]
    assert heard[0].per_minute > 0 and heard[-1].seconds_left == 0


def test_an_image_without_a_caption_gets_one(model: StableDiffusion, folder: Path) -> None:
    seen: list[Image.Image] = []

    def captioner(pictures: Sequence[Image.Image]) -> list[str]:
        seen.extend(pictures)
        return ["a cat on a mat"] * len(pictures)

    manifest = manifest_of(folder, {"prompt": ""}, count=2)
    run_manifest(manifest, folder / "out", Here(model, captioner=captioner), settings=FAST)
    assert len(seen) == 1 and records(folder / "out")["0"]["prompt"] == "a cat on a mat"
    summary = run_manifest(manifest, folder / "other", Here(model), settings=FAST)
    assert summary.failed == 1
    assert "row 1: prompt: got none" in records(folder / "other")["0"]["error"]


def test_a_caption_that_was_found_does_not_make_an_item_anew(
    model: StableDiffusion, folder: Path
) -> None:
    manifest = manifest_of(folder, {"prompt": ""}, count=1)
    here = Here(model, captioner=lambda pictures: ["a cat on a mat"])
    run_manifest(manifest, folder / "out", here, settings=FAST)
    assert run_manifest(manifest, folder / "out", here, settings=FAST).made == 0


def test_masks_are_used_and_kept(model: StableDiffusion, folder: Path) -> None:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    mask.save(folder / "mask.png")
    row = {"mask": "mask.png", "editor": "masked", "strength": "1.0"}
    manifest = manifest_of(folder, row, {"editor": "masked"}, count=2)
    run_manifest(manifest, folder / "out", Here(model), settings=FAST)
    assert (
        "mask: got none, expected one, as masked needs it" in records(folder / "out")["1"]["error"]
    )
    files = {n: Image.open(folder / f"out/items/0/{n}.png") for n in ("source", "edit-1", "mask")}
    assert files["mask"].tobytes() == mask.tobytes()
    outside = (0, 0, 64, 15)
    bound = to_pil(model.decode_latent(model.encode_image(load_image(files["source"], 64))))[0]
    assert files["edit-1"].crop(outside).tobytes() == bound.crop(outside).tobytes()


def test_batches_depend_on_the_manifest_alone(folder: Path) -> None:
    items = manifest_of(folder, {}, {}, {}, {"steps": "9"}, {"steps": "9"}, count=5).items
    assert [[i.id for i in batch] for batch in batched(items, 2)] == [["0", "1"], ["2"], ["3", "4"]]
    native = [replace(item, settings={"size": "native"}) for item in items]
    assert [len(batch) for batch in batched(native, 4)] == [1] * 5


def test_memory_that_runs_out_makes_smaller_batches(
    model: StableDiffusion, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, sizes = nti.datasets.work.invert_batch, []

    def small(model: Any, images: Sequence[Any], *rest: Any, **named: Any) -> Any:
        sizes.append(len(images))
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, images, *rest, **named)

    monkeypatch.setattr(nti.datasets.work, "invert_batch", small)
    summary = run_manifest(manifest_of(folder), folder / "out", Here(model), settings=FAST, batch=4)
    assert (summary.done, sizes) == (4, [4, 2, 1, 1, 2, 1, 1])


def test_an_item_that_does_not_fit_alone_fails_alone(
    model: StableDiffusion, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: Any, **named: Any) -> Any:
        raise MemoryError("cannot allocate")

    monkeypatch.setattr(nti.datasets.work, "invert_batch", never)
    summary = run_manifest(manifest_of(folder), folder / "out", Here(model), settings=FAST, batch=2)
    assert summary.failed == 4


def test_results_may_go_to_another_system_of_files(model: StableDiffusion, folder: Path) -> None:
    address = f"memory://{folder.name}/out"
    manifest = manifest_of(folder, count=2)
    run_manifest(manifest, folder / "here", Here(model), settings=FAST)
    summary = run_manifest(manifest, address, Here(model, output=address), settings=FAST)
    assert summary.made == 2
    there = open_folder(address)
    for name in ("items/1/edit-1.png", "summary.csv", "sheet.png"):
        assert there.read(name) is not None
    local = (folder / "here/items/1/edit-1.png").read_bytes()
    assert there.read("items/1/edit-1.png") == local
    assert run_manifest(manifest, address, Here(model), settings=FAST).made == 0


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


def test_a_folder_that_takes_nothing_is_refused(
    model: StableDiffusion, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Any) -> None:
        raise OSError(28, "out: No space left on device")

    monkeypatch.setattr(nti.datasets.addresses, "check_writable", full)
    with pytest.raises(OSError, match="No space left"):
        run_manifest(manifest_of(folder), folder / "out", Here(model), settings=FAST)
