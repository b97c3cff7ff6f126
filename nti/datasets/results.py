"""The folder of a run: what was asked for, each item's results, and what became of them.

run.json                         settings, weights, and how many items are made at once
items/ID/result.json             what became of an item; written last
items/ID/source.png              what the model was given
items/ID/reconstruction.png, edit-1.png, ..., mask.png, inversion.nti.safetensors
summary.csv, sheet.png           once a run ends
"""

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from PIL import Image

from nti.contact_sheet import contact_sheet
from nti.datasets.addresses import Folder, is_remote, read_bytes
from nti.datasets.item import Item, Problem
from nti.datasets.work import Outcome
from nti.files import encode_picture

__all__ = ["ITEMS", "Results", "RunError"]

RUN, ITEMS, RESULT, SUMMARY, SHEET = "run.json", "items", "result.json", "summary.csv", "sheet.png"

FORMAT = "nti-run-1"

SAME = ("format", "settings", "weights", "computed", "captioner")
"""What a run and the one that goes on with it have in common."""

ON_SHEET = 24
"""Items that the contact sheet shows at most."""

COLUMNS = (
    "id", "type", "status", "prompt", "edited_prompts", "method", "editors", "psnr", "iterations",
    "inversion_seconds", "edit_seconds", "warnings", "error",
)  # fmt: skip


class RunError(ValueError):
    """A folder whose results are another run's."""


class Results:
    """What a run has written so far."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def begin(self, asked: Mapping[str, Any]) -> None:
        """Write what is asked for.

        Raises:
            RunError: another run's folder, or one that holds other things.

        """
        wanted: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **asked}))
        if self.folder.read(RUN) is None:
            if others := sorted(n for n in self.folder.names("") if not n.startswith(".")):
                raise RunError(
                    f"--output: got {self.folder.address}, which holds {others[0]} and no {RUN},"
                    " expected a new folder, or one of an earlier run"
                )
        else:
            there = self.run()
            for name in SAME:
                if there.get(name) != wanted.get(name):
                    raise RunError(
                        f"{self.folder.address}: got results of another run ({name}"
                        f" {_short(there.get(name))}), expected this one's"
                        f" ({_short(wanted.get(name))}): repeat that run, or give another folder"
                    )
            if there == wanted:
                return
        self.folder.write(RUN, json.dumps(wanted, indent=2).encode())

    def run(self) -> dict[str, Any]:
        """Return what the run was asked for; RunError for a folder of none."""
        data = self.folder.read(RUN)
        try:
            found = json.loads(data or b"")
            if isinstance(found, dict):
                return found
        except ValueError:
            pass
        raise RunError(f"{self.folder.address}: got no {RUN}, expected the folder of a run")

    @property
    def batch(self) -> int | None:
        """How many items an earlier run made at once; None where there was none."""
        found = None if self.folder.read(RUN) is None else self.run().get("batch")
        return found if type(found) is int and found > 0 else None

    def record(self, id: str) -> dict[str, Any] | None:
        """Return what became of an item; None where that was not written, or not whole."""
        data = self.folder.read(f"{ITEMS}/{id}/{RESULT}")
        try:
            found = json.loads(data or b"")
        except ValueError:
            return None
        whole = isinstance(found, dict) and found.get("status") in ("done", "failed")
        return found if whole else None

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield what became of each item that is done.

        Those of the last run's manifest, in its order; of a run that has not ended all there are.
        """
        data = self.folder.read(SUMMARY)
        if data is None:
            ids = sorted(self.folder.names(ITEMS))
        else:
            lines = csv.DictReader(io.StringIO(data.decode(), newline=""))
            ids = [line["id"] for line in lines if line["status"] == "done"]
        for id in ids:
            found = self.record(id)
            if found is not None and found["status"] == "done":
                yield found

    def is_done(self, item: Item) -> bool:
        """Whether an item was made as it is asked for now, from the same picture, and is whole.

        A picture is looked at where it is on this machine. One that is gone counts as the same.
        """
        record = self.record(item.id)
        if record is None or record["status"] != "done" or record["request"] != item.request:
            return False
        if not set(record["files"]) <= self.folder.names(f"{ITEMS}/{item.id}"):
            return False
        if any(self.folder.read(name) is None for name in record["written_as"]):
            return False
        if is_remote(item.image) or not os.path.isfile(item.image):
            return True
        digest = hashlib.sha256(read_bytes(item.image)).hexdigest()
        return bool(digest == record["image_sha256"])

    def write(self, outcome: Outcome) -> None:
        """Write an item's results, its record last: without it they count as not there."""
        for name, data in outcome.elsewhere.items():
            self.folder.write(name, data)
        for name, data in outcome.files.items():
            self.folder.write(f"{ITEMS}/{outcome.id}/{name}", data)
        told = json.dumps(outcome.record, indent=2).encode()
        self.folder.write(f"{ITEMS}/{outcome.id}/{RESULT}", told)

    def picture(self, id: str, name: str) -> Image.Image | None:
        """Return one of an item's pictures, None where there is none."""
        data = self.folder.read(f"{ITEMS}/{id}/{name}")
        if data is None:
            return None
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return image

    def finish(self, ids: Iterable[str], problems: Iterable[Problem] = ()) -> None:
        """Write the summary: of some items, and of rows that are none. Draw the first items."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, COLUMNS)
        writer.writeheader()
        shown: list[list[tuple[Image.Image, str]]] = []
        for id in ids:
            if (record := self.record(id)) is None:
                continue
            writer.writerow(_row(record))
            if record["status"] == "done" and len(shown) < ON_SHEET:
                shown.append(self._cells(record))
        for problem in problems:
            writer.writerow({"id": problem.id, "status": "failed", "error": str(problem)})
        self.folder.write(SUMMARY, text.getvalue().encode())
        if shown:
            sheet = contact_sheet(shown, cell=128, title=f"the first {len(shown)} items")
            self.folder.write(SHEET, encode_picture(sheet, ".png"))

    def _cells(self, record: Mapping[str, Any]) -> list[tuple[Image.Image, str]]:
        prompts = [edit["prompt"] for edit in record["edits"]]
        labels = {
            "source.png": f"{record['id']}: {record['prompt']}",
            "reconstruction.png": f"reconstruction, {record['psnr']:.1f} dB",
            **{f"edit-{number}.png": prompt for number, prompt in enumerate(prompts, 1)},
        }
        found = ((self.picture(record["id"], name), label) for name, label in labels.items())
        return [(image, label) for image, label in found if image is not None]


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return an item's line of the summary."""
    seconds = record.get("seconds", {})
    edits = record["edits"]
    return {
        **{name: record.get(name, "") for name in ("id", "type", "status", "prompt", "error")},
        "edited_prompts": " | ".join(edit["prompt"] for edit in edits),
        "method": record["settings"].get("method", "null-text"),
        "editors": " | ".join(str(edit["settings"].get("editor", "p2p")) for edit in edits),
        "psnr": record.get("psnr", ""),
        "iterations": record.get("iterations", ""),
        "inversion_seconds": seconds.get("inversion", ""),
        "edit_seconds": seconds.get("edits", ""),
        "warnings": " | ".join(record.get("warnings", [])),
    }


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
