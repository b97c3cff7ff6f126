"""Manifests: a CSV file, JSON lines, a folder of pictures with captions, or PIE-Bench's folder.

docs/datasets.md describes them. What is wrong with a row is a `Problem` that names the row and the
field, and the other rows are read all the same.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nti.datasets.addresses import beside, read_bytes
from nti.datasets.fields import EDIT, INVERSION, canonical
from nti.datasets.item import Edit, Item, Manifest, ManifestError, Problem, check_id
from nti.datasets.pie_bench import MAPPING, read_pie_bench

__all__ = ["read_manifest"]

OWN = ("id", "image", "prompt", "edited_prompts", "edits", "mask", "type")
"""What a row says beside settings."""

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")

SEPARATOR = "|"
"""Between what one cell of a CSV file says of several edits."""


class RowError(ValueError):
    """What is wrong with a field of a row."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def read_manifest(address: str | Path) -> Manifest:
    """Read a manifest, whichever of the layouts it has.

    Args:
        address: a `.csv` or `.jsonl` file, a folder of pictures with a `.txt` file each, or the
            folder of PIE-Bench; a path, or an address that fsspec opens (of files).

    Returns:
        The items that can be made, and what is wrong with the others.

    Raises:
        ManifestError: a manifest of none of these layouts, without a column that it needs, or
            without a row.

    """
    address = str(address)
    try:
        if Path(address).is_dir():
            pie = (Path(address) / MAPPING).is_file()
            found = read_pie_bench(address) if pie else _folder(Path(address))
        else:
            found = _rows(address)
    except OSError as error:
        raise ManifestError(f"manifest: {error}") from error
    if not found.items and not found.problems:
        raise ManifestError(f"{address}: got no row, expected one image or more")
    return _unique(found)


def _rows(address: str) -> Manifest:
    ending = address.rsplit(".", 1)[-1].lower()
    if ending not in ("csv", "jsonl", "ndjson"):
        raise ManifestError(
            f"{address}: got no .csv or .jsonl file and no folder, expected one of them"
        )
    try:
        text = read_bytes(address).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{address}: got text that is not UTF-8 ({error.reason})") from error
    reader = _csv if ending == "csv" else _jsonl
    items, problems = [], []
    for place, row in reader(address, text):
        try:
            if isinstance(row, RowError):
                raise row
            items.append(_item(address, place, row))
        except RowError as error:
            name = row.get("id") if isinstance(row, Mapping) else None
            problems.append(Problem(place, error.field, str(error), _plain_id(name)))
    return Manifest(address, tuple(items), tuple(problems))


Rows = Iterator[tuple[str, Mapping[str, Any] | RowError]]


def _csv(address: str, text: str) -> Rows:
    lines = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = list(lines.fieldnames or [])
    except csv.Error as error:
        raise ManifestError(f"{address}: got no CSV that can be read ({error})") from error
    if twice := [name for name in columns if columns.count(name) > 1]:
        raise ManifestError(f"{address}: got the column {twice[0]!r} twice, expected it once")
    known = (*OWN, *INVERSION, *EDIT)
    if unknown := [name for name in columns if name not in known]:
        raise ManifestError(
            f"{address}: got the column {unknown[0]!r}, expected some of {', '.join(known)}"
        )
    if "image" not in columns:
        raise ManifestError(
            f"{address}: got the columns {', '.join(columns) or 'none'}, expected one named image"
        )
    number = 0
    while True:
        number += 1
        place = f"{address}: row {number}"
        try:
            row = next(lines)
        except StopIteration:
            return
        except csv.Error as error:  # what comes after it cannot be told apart
            yield place, RowError("row", f"got no CSV that can be read, from here on ({error})")
            return
        if None in row or None in row.values():
            yield place, RowError("row", "got more or fewer cells than there are columns")
            continue
        yield place, _cells({name: cell.strip() for name, cell in row.items() if cell.strip()})


def _cells(row: Mapping[str, str]) -> Mapping[str, Any] | RowError:
    """Return a row as JSON would have it; cells of edits may say something of each edit."""
    prompts = _parts(row.get("edited_prompts", ""))
    made: dict[str, Any] = {"edits": [{"prompt": prompt} for prompt in prompts]}
    for name, text in row.items():
        if name in OWN:
            made |= {} if name == "edited_prompts" else {name: text}
        elif name in EDIT and SEPARATOR in text:
            parts = [part.strip() for part in text.split(SEPARATOR)]
            if len(parts) != len(prompts):
                told = f"got {len(parts)} parts, expected {len(prompts)}, one an edited prompt"
                return RowError(name, told)
            for edit, part in zip(made["edits"], parts, strict=True):
                edit |= {name: canonical(part)} if part else {}
        else:
            made[name] = canonical(text)
    return made


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(SEPARATOR) if part.strip()]


def _jsonl(address: str, text: str) -> Rows:
    for number, line in enumerate(text.split("\n"), 1):  # JSON may hold other ends of lines
        if not line.strip():
            continue
        place = f"{address}: line {number}"
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            yield place, RowError("line", f"got no JSON ({error})")
            continue
        yield place, row if isinstance(row, dict) else RowError("line", "expected a JSON object")


def _item(address: str, place: str, row: Mapping[str, Any]) -> Item:
    """Return what a row says; RowError for what it cannot say."""
    for name in row:
        if name not in (*OWN, *INVERSION, *EDIT):
            raise RowError(
                name, f"got an unknown field, expected some of {', '.join(OWN)}, or settings"
            )
    image = _text(row, "image")
    if not image:
        raise RowError("image", "got none, expected a file's name")
    try:
        name = check_id(_text(row, "id") or Path(image).stem)
    except ValueError as error:
        raise RowError("id", str(error)) from error
    mask = _text(row, "mask")
    settings = {name: value for name, value in row.items() if name not in OWN}
    return Item(
        name, beside(address, image), image, _text(row, "prompt") or None, tuple(_edits(row)),
        settings, place, _text(row, "type") or "", beside(address, mask) if mask else None, mask,
    )  # fmt: skip


def _edits(row: Mapping[str, Any]) -> Iterator[Edit]:
    prompts, edits = row.get("edited_prompts", []), row.get("edits", [])
    for name, value in (("edited_prompts", prompts), ("edits", edits)):
        if not isinstance(value, list):
            raise RowError(name, f"got {value!r}, expected a list")
    for given in [*prompts, *edits]:
        edit = {"prompt": given} if isinstance(given, str) else given
        if not isinstance(edit, dict) or not isinstance(edit.get("prompt"), str):
            raise RowError("edits", f"got {given!r}, expected a string or an object with a prompt")
        settings = {_edit_name(name): v for name, v in edit.items() if name != "prompt"}
        if unknown := [name for name in settings if name not in EDIT]:
            raise RowError("edits", f"got {unknown[0]!r}, expected some of {', '.join(EDIT)}")
        yield Edit(edit["prompt"], settings)


def _edit_name(name: str) -> str:
    """Inside an edit its guidance scale and seed need no prefix."""
    return f"edit_{name}" if f"edit_{name}" in EDIT else name


def _text(row: Mapping[str, Any], name: str) -> str | None:
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise RowError(name, f"got {value!r}, expected a string")
    return value


def _plain_id(name: object) -> str:
    """Return what can be an id; empty where it cannot."""
    try:
        return check_id(name)
    except ValueError:
        return ""


def _folder(folder: Path) -> Manifest:
    """Read a folder of pictures: a `.txt` file beside each has its caption in the first line, and
    an edited prompt in each that follows.
    """
    items, problems = [], []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in PICTURES or path.name.startswith("."):
            continue
        place = str(path)
        try:
            name = check_id(path.stem)
        except ValueError as error:
            problems.append(Problem(place, "id", str(error)))
            continue
        try:
            lines = _caption(path.with_suffix(".txt"))
        except (OSError, UnicodeDecodeError) as error:
            problems.append(Problem(place, "prompt", f"its .txt cannot be read ({error})", name))
            continue
        edits = tuple(Edit(line) for line in lines[1:])
        prompt = lines[0] if lines else None
        items.append(Item(name, place, path.name, prompt, edits, {}, place))
    return Manifest(str(folder), tuple(items), tuple(problems))


def _caption(path: Path) -> Sequence[str]:
    if not path.is_file():
        return []
    lines = path.read_text("utf-8-sig").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _unique(manifest: Manifest) -> Manifest:
    """Refuse all but the first of the items that have the same id."""
    places: dict[str, str] = {}
    items, problems = [], list(manifest.problems)
    for item in manifest.items:
        # Some systems of files take names apart by their case, others do not.
        if (first := places.setdefault(item.id.lower(), item.place)) == item.place:
            items.append(item)
        else:
            message = f"got {item.id!r}, which {first} has already, expected another"
            problems.append(Problem(item.place, "id", message))
    return Manifest(manifest.address, tuple(items), tuple(problems))
