"""Runs over a manifest: what is made of each item, and what is kept of it."""

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
from nti.datasets.manifest import read_manifest
from nti.datasets.run import Here, Progress, batched, run_manifest
from nti.datasets.work import Keep
from world import FAST, manifest_of, records


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
