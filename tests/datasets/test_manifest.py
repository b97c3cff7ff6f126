"""Manifests: what is read from each layout, and what is told of a row that is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from nti.datasets.fields import EDIT, INVERSION
from nti.datasets.item import ManifestError
from nti.datasets.manifest import read_manifest
from world import write_rows


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_a_csv_row_says_image_prompts_and_settings(tmp_path: Path) -> None:
    row = {
        "image": "a.png", "prompt": "a cat", "edited_prompts": "a dog | a red cat",
        "blend": "cat:dog | ", "steps": "20", "cross_replace": "0.4", "self_replace": "0.1:0.6",
        "type": "animal", "mask": "m.png",
    }  # fmt: skip
    (item,) = read_manifest(write_rows(tmp_path / "m.csv", [row])).items
    assert (item.id, item.kind, item.prompt) == ("a", "animal", "a cat")
    assert (item.image, item.mask) == (str(tmp_path / "a.png"), str(tmp_path / "m.png"))
    assert [edit.prompt for edit in item.edits] == ["a dog", "a red cat"]
    assert [dict(edit.settings) for edit in item.edits] == [{"blend": "cat:dog"}, {}]
    assert dict(item.settings) == {"steps": 20, "cross_replace": 0.4, "self_replace": "0.1:0.6"}


def test_a_json_line_may_have_settings_of_an_edit_alone(tmp_path: Path) -> None:
    row = {
        "id": "x", "image": "/a.png", "prompt": "a cat", "method": "direct",
        "edits": ["a dog", {"prompt": "a red cat", "guidance_scale": 5, "blend": ["cat", "cat"]}],
    }  # fmt: skip
    (item,) = read_manifest(lines(tmp_path / "m.jsonl", row)).items
    assert item.image == "/a.png"
    assert dict(item.settings) == {"method": "direct"}
    assert dict(item.edits[1].settings) == {"edit_guidance_scale": 5, "blend": ["cat", "cat"]}


def test_a_folder_has_captions_beside_its_pictures(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").write_text("a cat\n\na dog\na red cat\n")
    first, second = read_manifest(tmp_path).items
    assert (first.prompt, [e.prompt for e in first.edits]) == ("a cat", ["a dog", "a red cat"])
    assert (second.prompt, second.edits) == (None, ())


def test_settings_of_an_item_override_those_of_the_run(tmp_path: Path) -> None:
    row = {
        "image": "a.png",
        "prompt": "p",
        "edits": [{"prompt": "q", "self_replace": 0.1}],
        "steps": 7,
    }
    (item,) = read_manifest(lines(tmp_path / "m.jsonl", row)).items
    merged = item.merged({"steps": 50, "method": "ddim", "cross_replace": 0.2, "self_replace": 0.9})
    assert dict(merged.settings) == {"steps": 7, "method": "ddim"}
    assert dict(merged.edits[0].settings) == {"cross_replace": 0.2, "self_replace": 0.1}


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"prompt": "p"}, "image"),
        ({"image": "a.png", "id": "../x"}, "id"),
        ({"image": "a.png", "id": "x" * 200}, "id"),
        ({"image": "a.png", "prompt": 5}, "prompt"),
        ({"image": "a.png", "edits": "p"}, "edits"),
        ({"image": "a.png", "edits": [{"blend": "x"}]}, "edits"),
        ({"image": "a.png", "edits": [{"prompt": "p", "nonsense": 1}]}, "edits"),
        ({"image": "a.png", "nonsense": 1}, "nonsense"),
        ("{", "line"),
        ("[1]", "line"),
    ],
)  # fmt: skip
def test_a_wrong_line_is_named_and_the_others_are_read(
    row: Any, field: str, tmp_path: Path
) -> None:
    found = read_manifest(lines(tmp_path / "m.jsonl", {"image": "good.png"}, row))
    assert [item.id for item in found.items] == ["good"]
    (problem,) = found.problems
    assert (problem.field, problem.place) == (field, f"{tmp_path / 'm.jsonl'}: line 2")
    assert "\n" not in str(problem)


def test_a_cell_must_say_something_of_each_edit(tmp_path: Path) -> None:
    row = {"image": "a.png", "edited_prompts": "p | q", "blend": "a | b | c"}
    (problem,) = read_manifest(write_rows(tmp_path / "m.csv", [row])).problems
    assert problem.field == "blend" and "3 parts, expected 2" in str(problem)


def test_a_second_item_of_the_same_id_is_refused(tmp_path: Path) -> None:
    rows = [{"image": "x/a.png"}, {"image": "y/A.png"}, {"image": "b.png"}]
    found = read_manifest(write_rows(tmp_path / "m.csv", rows))
    assert [item.id for item in found.items] == ["a", "b"]
    (problem,) = found.problems
    assert problem.field == "id" and "row 1 has already" in str(problem)
    assert problem.place.endswith("row 2")


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("m.csv", "picture,prompt\na,b\n", "got the column 'picture'"),
        ("m.csv", "id,prompt\na,b\n", "got the columns id, prompt, expected one named image"),
        ("m.csv", "image,prompt,prompt\na,b,c\n", "got the column 'prompt' twice"),
        ("m.csv", "image\n", "got no row"),
        ("m.csv", "", "got the columns none"),
        ("m.txt", "image\n", "expected one of them"),
        ("m.jsonl", "", "got no row"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused(
    name: str, text: str, told: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ManifestError, match=told):
        read_manifest(tmp_path / name)


def test_a_manifest_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="nowhere.csv"):
        read_manifest(tmp_path / "nowhere.csv")
    (tmp_path / "bytes.csv").write_bytes(b"image\n\xff\xfe\n")
    with pytest.raises(ManifestError, match="not UTF-8"):
        read_manifest(tmp_path / "bytes.csv")


def test_a_row_that_is_no_csv_is_named_and_those_before_it_are_read(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text('image,prompt\na.png,p\nb.png,"x"y\nc.png,p\n')
    found = read_manifest(tmp_path / "m.csv")
    assert [item.id for item in found.items] == ["a"]
    assert found.problems[0].place.endswith("row 2")


def test_marks_and_ends_of_lines_of_other_systems_are_read(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "IMG (1).png")
    (tmp_path / "IMG (1).txt").write_bytes("\ufeffa cat\r\n".encode())
    (item,) = read_manifest(tmp_path).items
    assert (item.id, item.prompt) == ("IMG (1)", "a cat")
    (tmp_path / "IMG (1).txt").write_bytes(b"a caf\xe9")
    (problem,) = read_manifest(tmp_path).problems
    assert (problem.field, problem.id) == ("prompt", "IMG (1)")
    row = json.dumps({"image": "a.png", "prompt": "a\u2028cat"}, ensure_ascii=False)
    (item,) = read_manifest(lines(tmp_path / "m.jsonl", row)).items
    assert item.prompt == "a\u2028cat"


def test_no_name_means_two_things() -> None:
    assert not set(INVERSION) & set(EDIT)
    assert {"edit_guidance_scale", "edit_seed", "edit_learning_rate"} <= set(EDIT)


def test_an_image_may_be_at_an_address(tmp_path: Path) -> None:
    (item,) = read_manifest(lines(tmp_path / "m.jsonl", {"image": "memory://a/b.png"})).items
    assert item.image == "memory://a/b.png"
