"""PIE-Bench's layout: masks, brackets, what is read and what is written."""

import io
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nti import StableDiffusion
from nti.datasets.item import ManifestError
from nti.datasets.manifest import read_manifest
from nti.datasets.pie_bench import (
    MAPPING,
    PICTURES,
    decode_mask,
    encode_mask,
    evaluator_picture,
    plain_prompt,
)
from nti.datasets.run import Here, run_manifest
from world import FAST, write_pie_bench


@given(st.lists(st.booleans(), min_size=64, max_size=64))
def test_runs_of_a_mask_are_read_as_they_were_written(values: list[bool]) -> None:
    mask = torch.tensor(values).view(8, 8)
    again = decode_mask(encode_mask(mask), 8)
    assert torch.equal(again[1:-1, 1:-1], mask[1:-1, 1:-1])


def test_the_border_is_edited_and_a_run_beyond_the_end_is_cut() -> None:
    mask = decode_mask([10, 2, 60, 100], 8)
    inner = torch.zeros(8, 8, dtype=torch.bool)
    inner[[0, -1]] = inner[:, 0] = inner[:, -1] = True
    inner[1, 2:4] = True
    assert torch.equal(mask, inner)


def test_prompts_lose_their_brackets() -> None:
    assert plain_prompt("a [cat] on a [[bench]]") == "a cat on a bench"


def test_the_folder_is_read_as_it_is_distributed(tmp_path: Path) -> None:
    found = read_manifest(write_pie_bench(tmp_path / "pie", 2))
    assert not found.problems
    first, second = found.items
    assert first.id == "000000000000" and first.kind == "6"
    assert "[" not in first.prompt + first.edits[0].prompt
    assert Path(first.image).is_file()
    assert (
        first.written_as
        == f"{PICTURES}/{Path(first.image).relative_to(tmp_path / 'pie' / PICTURES)}"
    )
    plain, blended = first.merged({}).edits[0].settings, second.merged({}).edits[0].settings
    assert plain == {"mode": "refine", "cross_replace": 0.4, "self_replace": 0.6}
    old, new = blended["blend"]
    assert blended["reweight"] == {new: 2.0} and old in second.prompt


def test_what_is_suggested_gives_way_and_counts_for_prompt_to_prompt_alone(tmp_path: Path) -> None:
    item = read_manifest(write_pie_bench(tmp_path / "pie", 2)).items[1]
    assert item.merged({"cross_replace": 0.9}).edits[0].settings["cross_replace"] == 0.9
    assert item.merged({"editor": "sdedit"}).edits[0].settings == {"editor": "sdedit"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_path", "../../etc/passwd"),
        ("image_path", None),
        ("original_prompt", 3),
        ("mask", [1, 2, 3]),
        ("mask", [1, -2]),
        ("mask", "1 2"),
        ("blended_word", "one two three"),
    ],
)
def test_a_wrong_entry_is_named(field: str, value: object, tmp_path: Path) -> None:
    folder = write_pie_bench(tmp_path / "pie", 2)
    entries = json.loads((folder / MAPPING).read_text())
    entries["000000000001"][field] = value
    (folder / MAPPING).write_text(json.dumps(entries))
    found = read_manifest(folder)
    assert [item.id for item in found.items] == ["000000000000"]
    assert found.problems[0].field == field and "000000000001" in found.problems[0].place


def test_ids_are_names_of_folders_and_stand_there_once(tmp_path: Path) -> None:
    folder = write_pie_bench(tmp_path / "pie", 1)
    entry = json.dumps(next(iter(json.loads((folder / MAPPING).read_text()).values())))
    (folder / MAPPING).write_text(f'{{"1": {entry}, "../../x": {entry}, "1": {entry}}}')
    found = read_manifest(folder)
    assert [item.id for item in found.items] == ["1"]
    assert [problem.field for problem in found.problems] == ["id", "id"]
    assert "twice" in found.problems[1].message


def test_a_suggestion_that_does_not_fit_is_left_out(
    embedded: StableDiffusion, tmp_path: Path
) -> None:
    folder = write_pie_bench(tmp_path / "pie", 1)
    entries = json.loads((folder / MAPPING).read_text())
    entries["000000000000"] |= {"blended_word": "cat dog", "mask": []}
    (folder / MAPPING).write_text(json.dumps(entries))
    heard: list[str] = []
    out = tmp_path / "out"
    summary = run_manifest(
        read_manifest(folder), out, Here(embedded), settings=FAST, warn=heard.append
    )
    assert (summary.done, summary.failed) == (1, 0)
    assert any("blend: " in line and line.endswith("left out") for line in heard)
    with Image.open(out / "items/000000000000/mask.png") as mask:
        assert mask.getextrema() == (0, 0)  # a border of a quarter of a pixel at this size


def test_a_mapping_that_is_none_is_refused(tmp_path: Path) -> None:
    for text in ("[]", "{", "[" * 100_000):
        (tmp_path / MAPPING).write_text(text)
        with pytest.raises(ManifestError, match=MAPPING):
            read_manifest(tmp_path)


def test_edits_are_written_where_its_evaluator_looks(
    embedded: StableDiffusion, tmp_path: Path
) -> None:
    manifest = read_manifest(write_pie_bench(tmp_path / "pie", 2))
    out = tmp_path / "output" / "null-text+p2p"
    summary = run_manifest(manifest, out, Here(embedded), settings=FAST, batch=2)
    assert (summary.done, summary.failed) == (2, 0)
    for item in manifest.items:
        path = out / str(item.written_as)
        with Image.open(path) as image:
            assert (image.size, image.format) == ((512, 512), "JPEG")
        with Image.open(out / "items" / item.id / "edit-1.png") as edit:
            small = Image.open(path).resize(edit.size, Image.Resampling.BOX)
            difference = [abs(a - b) for a, b in zip(edit.tobytes(), small.tobytes(), strict=True)]
            assert sum(difference) / len(difference) < 2  # of 255: the same picture, enlarged
        with Image.open(out / "items" / item.id / "mask.png") as mask:
            assert mask.size == (128, 128)


def test_a_picture_for_the_evaluator_loses_little() -> None:
    torch.manual_seed(0)
    coarse = (torch.rand(32, 32, 3) * 255).to(torch.uint8)
    image = Image.frombytes("RGB", (32, 32), bytes(coarse.flatten().tolist()))
    image = image.resize((512, 512), Image.Resampling.BICUBIC)
    again = Image.open(io.BytesIO(evaluator_picture(image)))
    worst = max(abs(a - b) for a, b in zip(image.tobytes(), again.tobytes(), strict=True))
    assert worst <= 6
