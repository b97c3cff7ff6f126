"""Manifests of rendered scenes, and a folder in PIE-Bench's layout, for the tests."""

import csv
import json
from pathlib import Path
from typing import Any

from PIL import Image

from edits import cases, true_mask
from nti.datasets.addresses import open_folder
from nti.datasets.item import Manifest
from nti.datasets.manifest import read_manifest
from nti.datasets.pie_bench import MAPPING, PICTURES, encode_mask
from nti.datasets.results import Results
from nti.evaluation.metrics import _unit
from scene import Scene, random_scene, render

FIRST = 1_000_500
"""The first seed: of scenes that no training has seen."""

FAST = {"steps": 2, "inner_steps": 1}

COUNT = 6
"""Scenes of the fixtures."""


def scenes(count: int) -> list[Scene]:
    return [random_scene(FIRST + number) for number in range(count)]


def picture(scene: Scene, side: int = 128) -> Image.Image:
    return Image.fromarray(render(scene)).resize((side, side), Image.Resampling.NEAREST)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_manifest(folder: Path, count: int, **more: Any) -> Path:
    """Write scenes as pictures, and a CSV file that names them, each with an edit of its colour."""
    rows = []
    for scene in scenes(count):
        name = f"scene-{scene.seed}"
        picture(scene).save(folder / f"{name}.png")
        case = next(cases(scene))
        row = {"id": name, "image": f"{name}.png", "prompt": scene.caption()}
        rows.append({**row, "edited_prompts": case.prompt, "type": case.kind, **more})
    return write_rows(folder / "manifest.csv", rows)


def write_pie_bench(folder: Path, count: int) -> Path:
    """Write scenes in PIE-Bench's layout: 512 pixels, brackets, run lengths."""
    entries = {}
    for number, scene in enumerate(scenes(count)):
        relative = f"6_change_attribute_color_40/1_artificial/3_indoor/{number:012}.jpg"
        path = folder / PICTURES / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(scene, 512).save(path, quality=95)
        case = next(cases(scene))
        old, new = _changed(scene.caption(), case.prompt)
        mask = true_mask(case, scene).resize((512, 512), Image.Resampling.NEAREST)
        entries[f"{number:012}"] = {
            "image_path": relative,
            "original_prompt": scene.caption().replace(old, f"[{old}]"),
            "editing_prompt": case.prompt.replace(new, f"[{new}]"),
            "editing_instruction": f"Change {old} to {new}",
            "editing_type_id": "6",
            "blended_word": f"{old} {new}" if number % 2 else "",
            "mask": encode_mask(_unit(mask)[0, 0] > 0.5),
        }
    folder.mkdir(exist_ok=True)
    (folder / MAPPING).write_text(json.dumps(entries))
    return folder


def _changed(a: str, b: str) -> tuple[str, str]:
    """The word of each caption that the other lacks."""
    pairs = [(x, y) for x, y in zip(a.split(), b.split(), strict=True) if x != y]
    return pairs[-1]


def same_pictures(a: Path, b: Path) -> bool:
    """Whether two runs have the same pictures of every item, bit for bit."""
    names = sorted(path.relative_to(a) for path in (a / "items").rglob("*.png"))
    assert names == sorted(path.relative_to(b) for path in (b / "items").rglob("*.png"))
    return bool(names) and all((a / n).read_bytes() == (b / n).read_bytes() for n in names)


def manifest_of(folder: Path, *changes: dict[str, Any], count: int = 4) -> Manifest:
    """Of the fixture `folder`, each picture with an edit, and what rows say otherwise."""
    rows = [
        {"image": f"{n}.png", "prompt": "a cat on a mat", "edited_prompts": "a dog on a mat"}
        for n in range(count)
    ]
    for row, change in zip(rows, changes, strict=False):
        row.update(change)
    return read_manifest(write_rows(folder / "m.csv", rows))


def records(out: Path) -> dict[str, dict[str, Any]]:
    """What a run has written of each item, by its id."""
    results = Results(open_folder(str(out)))
    found = {path.name: results.record(path.name) for path in (out / "items").glob("*")}
    return {id: record for id, record in found.items() if record is not None}
