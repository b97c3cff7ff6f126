"""Files that every node of a Ray cluster needs: used where a node has them, else fetched once."""

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nti.files import locked, write_file

__all__ = ["fetched", "shared"]


def shared(paths: Sequence[str | None], *, to_others: bool = True) -> dict[str, Any]:
    """Put files, or all those of folders, where each node can fetch them.

    Args:
        paths: of this machine.
        to_others: whether there are other machines; else nothing is put anywhere.

    Returns:
        By the name that a file has here its SHA-256 and a reference to its bytes, or None.

    """
    import ray

    found: dict[str, Any] = {}
    for given in filter(None, paths):
        path = Path(given)
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file():
                reference = ray.put(file.read_bytes()) if to_others else None
                found[str(file)] = (_digest(file), reference)
    return found


def fetched(files: Mapping[str, Any]) -> Callable[[str | None], str | None]:
    """Return what gives a file's name on this node: its own, or that of a copy.

    A node whose own file is missing or another one fetches it once, whichever of its workers is
    first. Copies are known by their contents, and stay for later runs.
    """
    places = {}
    for name, (digest, _) in files.items():
        places[name] = name
        if os.path.isfile(name) and _digest(Path(name)) == digest:
            continue
        told = hashlib.sha256("\n".join(f"{n} {d}" for n, (d, _) in sorted(files.items())).encode())
        folder = Path(tempfile.gettempdir()) / f"nti-{told.hexdigest()[:24]}"
        folder.mkdir(exist_ok=True)
        places = {each: str(folder / each.lstrip("/")) for each in files}
        _fetch(folder, files, places)
        break

    def here(name: str | None) -> str | None:
        if name is None or name in places:
            return None if name is None else places[name]
        # A folder of files: it lies where they do.
        inside = next((n for n in places if n.startswith(f"{name}/")), None)
        return name if inside is None else places[inside].removesuffix(inside[len(name) :])

    return here


def _fetch(folder: Path, files: Mapping[str, Any], places: Mapping[str, str]) -> None:
    import ray

    while True:
        try:
            with locked(folder / ".lock"):
                for name, (digest, reference) in files.items():
                    path = Path(places[name])
                    if not path.is_file() or _digest(path) != digest:
                        write_file(path, ray.get(reference))
            return
        except BlockingIOError:  # another worker of this node is fetching them
            time.sleep(0.2)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
