"""Safetensors files, one or several that an index names, and the JSON beside them; what is wrong
with them is a CheckpointError.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self, TypeVar

from msgspec import Meta
from nti.weights_loader.metadata import LONGEST, decode, printable
from nti.weights_loader.recognise import PICKLE_SUFFIXES, pickle_message
from safetensors import SafetensorError, safe_open
from torch import Tensor

__all__ = [
    "CheckpointError",
    "Shards",
    "TensorHeader",
    "open_file",
    "read_header",
    "read_json",
    "read_metadata",
    "read_tensor",
    "read_text",
]

T = TypeVar("T")

MOST_SHARDS = 64
"""Each is an open file."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded; the message lists what is wrong with it."""


@dataclass(frozen=True)
class TensorHeader:
    """What a file's header says of one tensor."""

    shape: tuple[int, ...]
    dtype: str
    """As safetensors spells it: `F32`, `F16`, `BF16`, ..."""


@dataclass(frozen=True)
class Index:
    """What diffusers and transformers write beside a network in several files."""

    weight_map: dict[str, Annotated[str, Meta(min_length=1, max_length=255)]]
    """The file of each tensor, in the same folder."""


LONGEST_NAME = 255
"""Bytes; systems fail for longer ones."""


class Shards:
    """Several safetensors files that are read as one; a context manager, as `safe_open` is."""

    def __init__(self, index: Path) -> None:
        """Open all files. Raises CheckpointError where index and files do not agree."""
        self.map = read_json(index, Index).weight_map
        names = sorted(set(self.map.values()))
        for name in names:
            plain = name.endswith(".safetensors") and not set(name) & set("/\\\0")
            if not plain or len(name.encode()) > LONGEST_NAME:
                raise CheckpointError(
                    f"{index}: weight_map: got a file '{printable(name)}', expected the plain name"
                    " of a .safetensors file in the same folder"
                )
        if not 0 < len(names) <= MOST_SHARDS:
            raise CheckpointError(
                f"{index}: weight_map: got {len(names)} files, expected 1 to {MOST_SHARDS}"
            )
        if missing := [name for name in names if not (index.parent / name).is_file()]:
            raise CheckpointError(
                f"{index}: got no {', '.join(missing)}, expected every file that it names beside"
                " it: download it again"
            )
        with ExitStack() as stack:
            self.files = {n: stack.enter_context(_open(index.parent / n)) for n in names}
            keys: dict[str, list[str]] = {name: file.keys() for name, file in self.files.items()}
            held = {(key, name) for name, there in keys.items() for key in there}
            if wrong := sorted(held ^ set(self.map.items())):
                key, name = wrong[0]
                where = "lacks" if wrong[0] not in held else "holds, unlike the index,"
                raise CheckpointError(
                    f"{index}: {printable(name)} {where} '{printable(key)}', expected that they"
                    f" agree (they do not on {len(wrong)}): take all from the same place"
                )
            self.stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stack.close()

    def keys(self) -> list[str]:
        """Return the names of all tensors."""
        return list(self.map)

    def metadata(self) -> dict[str, str]:
        """Return the metadata of all files together."""
        return {k: v for file in self.files.values() for k, v in (file.metadata() or {}).items()}

    def get_slice(self, key: str) -> Any:
        """Return what knows a tensor's shape and type, without reading it."""
        return self.files[self.map[key]].get_slice(key)

    def get_tensor(self, key: str) -> Any:
        """Read a tensor."""
        return self.files[self.map[key]].get_tensor(key)


def open_file(path: Path) -> safe_open | Shards:
    """Map a safetensors file, or those of an index; CheckpointError where there is none."""
    return Shards(path) if path.suffix == ".json" else _open(path)


def _open(path: Path) -> safe_open:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a .safetensors checkpoint")
    if path.suffix in PICKLE_SUFFIXES:
        raise CheckpointError(pickle_message([path], path.with_suffix(".safetensors").name))
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a safetensors file ({printable(str(error))}); if it was downloaded, it"
            " may be cut short"
        ) from error


def read_metadata(path: Path) -> dict[str, str]:
    """Return the file's metadata, empty where it has none.

    Raises CheckpointError where there is no such file or it is no safetensors file.
    """
    with open_file(path) as file:
        return dict(file.metadata() or {})


def read_header(path: Path) -> dict[str, TensorHeader]:
    """Return shape and dtype of every tensor, without reading one. Raises CheckpointError."""
    with open_file(path) as file:
        names: list[str] = file.keys()
        slices = {name: file.get_slice(name) for name in names}
        return {
            key: TensorHeader(tuple(s.get_shape()), str(s.get_dtype())) for key, s in slices.items()
        }


def read_tensor(path: Path, key: str) -> Tensor | None:
    """Return one tensor on the CPU, None where there is none. Raises CheckpointError."""
    with open_file(path) as file:
        if key not in file.keys():  # noqa: SIM118  # a file is no mapping
            return None
        tensor: Tensor = file.get_tensor(key)
        return tensor


def read_json(path: Path, kind: type[T]) -> T:
    """Read a JSON file as a type (see `decode`). Raises CheckpointError."""
    try:
        return decode(read_text(path), kind, str(path))
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def read_text(path: Path) -> bytes:
    """Read a small file. Raises CheckpointError for one that is large or cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(LONGEST + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if len(data) > LONGEST:
        raise CheckpointError(f"{path}: got more than {LONGEST} bytes, expected a small text file")
    return data
