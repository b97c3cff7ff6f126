"""What a command may write to, found out before the work, and how its results are kept."""

import argparse
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nti.files import PICTURES, check_writable, is_marked

__all__ = ["LATENTS", "check_folder", "check_output", "holds", "keep", "keep_each", "numbered"]

LATENTS = ".safetensors"
"""What the names of saved inversions and latents end in."""

INPUTS = (
    "image", "inversion", "mask", "paste_back", "checkpoint", "vae", "captioner", "candidates",
)  # fmt: skip
"""The options that name files to be read."""

REPORT, MOST_REPORT = b'<meta name="generator" content="nti report">', 1000
"""What a report says of itself, within so many bytes of its beginning."""

CAPTIONS = b"id,image,prompt\r\n"
"""What a manifest of `nti caption` begins with."""

SUFFIXES = {
    "picture": tuple(PICTURES),
    "inversion": (LATENTS,),
    "latents": (LATENTS,),
    "published": (LATENTS,),
    "plan": (LATENTS,),
    "report": (".html",),
    "manifest": (".csv",),
}


def check_output(options: argparse.Namespace, path: Path, *kinds: str) -> Path:
    """Check that a result can be written to a path and destroys nothing but an older result.

    Args:
        options: all of the command, as some name files that are read.
        path: of the output. Its folder is made.
        kinds: what the command may write there: `picture`, `inversion`, `latents`, `published`,
            `plan`, `report`, `manifest`.

    Returns:
        The path.

    Raises:
        ValueError: a name of another ending, a directory or special file, a file that is read, or
        one that is no older result.
        OSError: a place where nothing can be written.

    """
    if os.path.exists(path):  # a directory or a pipe is told before its name's ending
        check_writable(path)
    if not any(_ends(path, kind) for kind in kinds):
        endings = " or ".join(f"{SUFFIXES[kind][0]} ({kind})" for kind in kinds)
        raise ValueError(f"--output: got {path}, expected a name that ends in {endings}")
    check_writable(path)
    for name in INPUTS:
        given = getattr(options, name, None)
        if isinstance(given, Path) and _is_in(path, given):
            raise ValueError(
                f"--output: got {path}, which this command reads, expected another name"
            )
    holds_something = path.exists() and path.stat().st_size > 0
    if holds_something and not any(holds(path, kind) for kind in kinds if _ends(path, kind)):
        raise ValueError(
            f"--output: got {path}, which is there and no {' or '.join(kinds)} that nti wrote,"
            " expected a new name: move the file away if it is not needed"
        )
    return path


def check_folder(path: Path) -> Path:
    """Check that results can be written into a folder, make it, and return it.

    Raises ValueError for a file, or for a folder that holds anything but earlier results.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"--output: got the file {path}, expected a folder's name")
    check_writable(path / ".nti-check")
    for there in sorted(path.iterdir()):
        if not there.name.startswith(".") and not any(holds(there, kind) for kind in RECOGNISED):
            raise ValueError(
                f"--output: got {path}, which holds {there.name}, expected a new folder, or one"
                " that holds earlier results alone"
            )
    return path


def numbered(path: Path, count: int) -> list[Path]:
    """Return PNG-1, PNG-2, ... for several pictures, the path itself for one."""
    if count == 1:
        return [path]
    return [path.with_stem(f"{path.stem}-{number}") for number in range(1, count + 1)]


def holds(path: Path, kind: str) -> bool:
    """Whether a file is a `picture` that nti wrote, an `inversion`, `latents`, a `published`
    inversion, a `plan`, a `report` or a `manifest` of captions, by what is in it.
    """
    return path.is_file() and RECOGNISED[kind](path)


def keep(path: Path, save: Callable[[Path], None]) -> None:
    """Save a result, or else keep it in the system's folder for temporary files.

    Raises OSError where the path could not be written; the message says where the result is.
    """
    try:
        save(path)
    except (OSError, ValueError) as error:  # of a directory that has come to be there meanwhile
        folder = Path(tempfile.mkdtemp(prefix="nti-"))
        elsewhere = folder / f"result{path.suffix}"  # the name may be what is wrong
        try:
            save(elsewhere)
        except (OSError, ValueError):
            shutil.rmtree(folder, ignore_errors=True)
            raise error from None
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise OSError(errno.EIO, f"{reason}; the result was kept as {elsewhere}") from error


def keep_each(results: Mapping[Path, Callable[[Path], None]]) -> dict[Path, OSError]:
    """Keep several results, each whatever becomes of the others; return the errors by path."""
    errors = {}
    for path, save in results.items():
        try:
            keep(path, save)
        except OSError as error:
            errors[path] = error
    return errors


def _ends(path: Path, kind: str) -> bool:
    return path.name.lower().endswith(SUFFIXES[kind])


def _is_in(path: Path, given: Path) -> bool:
    """Whether a path is a given file, by whatever name, or one of a given folder."""
    if path.exists() and given.is_file():
        return os.path.samefile(path, given)
    return Path(os.path.realpath(given)) in Path(os.path.realpath(path)).parents and path.exists()


def _header(path: Path) -> tuple[Sequence[str], Sequence[str]]:
    """The metadata's keys and the tensors' names of a safetensors file, of any other none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return list(file.metadata() or {}), list(file.keys())
    except (SafetensorError, OSError):
        return [], []


def _is_report(path: Path) -> bool:
    """Whether a page says that `nti report` made it."""
    if path.suffix.lower() != ".html":
        return False
    try:
        with path.open("rb") as file:
            return REPORT in file.read(MOST_REPORT)
    except OSError:
        return False


def _is_manifest(path: Path) -> bool:
    """Whether a table begins as `nti caption` writes it."""
    if path.suffix.lower() != ".csv":
        return False
    with path.open("rb") as file:
        return file.read(len(CAPTIONS)) == CAPTIONS


RECOGNISED: dict[str, Callable[[Path], bool]] = {
    "picture": is_marked,
    "inversion": lambda path: "inversion" in _header(path)[0],
    "latents": lambda path: _header(path)[1] == ["latents"],
    "published": lambda path: set(_header(path)[1]) == {"uncond_embeddings", "x_t"},
    "plan": lambda path: "plan" in _header(path)[0],
    "report": lambda path: _is_report(path),
    "manifest": lambda path: _is_manifest(path),
}
