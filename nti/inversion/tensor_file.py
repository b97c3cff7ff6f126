"""Tensors and a header in one safetensors file that knows when a bit of it has changed.

Saved inversions and the states of unfinished ones are such files. The header is one JSON object
under one metadata key, so the same contents are always the same bytes.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from nti.files import write_file
from nti.weights_loader.metadata import LONGEST, convert, decode

__all__ = ["LARGEST", "TensorFile", "encode_tensors", "read_tensors", "write_tensors"]

LARGEST = 2**30
"""Bytes of a file that is read at most; an inversion of 50 steps at 512 px has 18 million."""

CHUNK = 2**20


@dataclass(frozen=True)
class TensorFile:
    """What was read from a file."""

    metadata: Mapping[str, str]
    """The file's own."""
    header: Mapping[str, Any]
    """The JSON object, without its digest."""
    tensors: Mapping[str, Tensor]
    """By name, on the CPU."""
    verified: bool
    """Whether there was a digest. Where there is one, the contents agree with it."""


def encode_tensors(key: str, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """Return a file's bytes.

    Args:
        key: of the metadata, under which the header is.
        header: what JSON can hold; the digest is added to it.
        tensors: by name.

    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = memoryview(save(plain))
    start = 8 + int.from_bytes(data[:8], "little")
    digest = _digest(header, json.loads(bytes(data[8:start])), [data[start:]])
    return save(plain, {key: json.dumps({**header, "digest": digest}, sort_keys=True)})


def write_tensors(
    path: str | Path, key: str, header: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write a file whole or not at all, see `nti.files.write_file` and `encode_tensors`.

    Raises OSError where it cannot be written.
    """
    write_file(path, encode_tensors(key, header, tensors))


def read_tensors(path: str | Path, key: str) -> TensorFile:
    """Read what `encode_tensors` made, or an older file that has a header without a digest.

    Raises:
        ValueError: a file that is too large, is no safetensors file, has no such key, a header that
        is no JSON object, or does not agree with its digest. The message does not name the file.
        OSError: a file that cannot be read.

    """
    with Path(path).open("rb") as file:
        size = file.seek(0, 2)
        if size > LARGEST:
            raise ValueError(f"got {size} bytes, expected at most {LARGEST}")
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if length > min(size, LONGEST):
            raise ValueError("got no safetensors file")
        entries = decode(file.read(length), dict[str, Any], "header")
        metadata = convert(entries.pop("__metadata__", {}), dict[str, str], "metadata")
        if key not in metadata:
            raise ValueError(f"got a safetensors file without {key!r} in its metadata")
        header = decode(metadata[key], dict[str, Any], f"metadata {key}")
        digest = header.pop("digest", None)
        chunks = iter(lambda: file.read(CHUNK), b"")
        if digest is not None and digest != _digest(header, entries, chunks):
            raise ValueError(
                "its contents do not agree with its digest: it was damaged or changed after it was"
                " saved, so take another copy"
            )
    try:
        tensors = load_file(path)
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return TensorFile(metadata, header, tensors, digest is not None)


def _digest(
    header: Mapping[str, Any], entries: Mapping[str, Any], body: Iterable[bytes | memoryview]
) -> str:
    """SHA-256 of the header, of the tensors' names, types and places, and of their bytes."""
    found = hashlib.sha256(json.dumps([header, entries], sort_keys=True).encode())
    for chunk in body:
        found.update(chunk)
    return found.hexdigest()
