"""Tensors and a header in one safetensors file that knows when a bit of it has changed.

Saved inversions and the states of unfinished ones are such files. The header is one JSON object
under one metadata key, so the same contents are always the same bytes.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from nti.files import write_file
from nti.weights_loader.metadata import decode

__all__ = ["LARGEST", "read_tensors", "write_tensors"]

LARGEST = 2**30
"""Bytes of a file that is read at most; an inversion of 50 steps at 512 px has 18 million."""


def write_tensors(
    path: str | Path, key: str, header: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write a file whole or not at all (see `nti.files.write_file`).

    Args:
        path: of the file.
        key: of the metadata, under which the header is.
        header: what JSON can hold; the digest is added to it.
        tensors: by name.

    Raises OSError where it cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = save(plain)
    digest = _digest(header, *_split(data))
    text = json.dumps({**header, "digest": digest}, sort_keys=True, ensure_ascii=False)
    write_file(path, save(plain, {key: text}))


def read_tensors(path: str | Path, key: str) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Read what `write_tensors` wrote: the header, without its digest, and the tensors on the CPU.

    Returns None where the file is a sound safetensors file without this key. A header that has no
    digest is not checked against one: older files have none.

    Raises:
        ValueError: a file that is too large, is no safetensors file, has a header that is no JSON
        object, or does not agree with its digest. The message does not name the file.
        OSError: a file that cannot be read.

    """
    size = Path(path).stat().st_size
    if size > LARGEST:
        raise ValueError(f"got {size} bytes, expected at most {LARGEST}")
    data = Path(path).read_bytes()
    try:
        tensors = load(data)
    except (SafetensorError, KeyError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    entries, body = _split(data)
    text = entries.pop("__metadata__", {}).get(key)
    if text is None:
        return None
    header = decode(text, dict[str, Any], key)
    digest = header.pop("digest", None)
    if digest is not None and digest != _digest(header, entries, body):
        raise ValueError(
            "its contents do not agree with its digest: it was damaged or changed after it was"
            " saved; take another copy"
        )
    return header, tensors


def _split(data: bytes) -> tuple[dict[str, Any], memoryview]:
    """Return a safetensors file's header, and its tensors' bytes."""
    length = int.from_bytes(data[:8], "little")
    return decode(data[8 : 8 + length], dict[str, Any], "header"), memoryview(data)[8 + length :]


def _digest(header: Mapping[str, Any], entries: Mapping[str, Any], body: memoryview) -> str:
    """SHA-256 of the header, of the tensors' names, types and places, and of their bytes."""
    words = json.dumps([header, entries], sort_keys=True)
    return hashlib.sha256(words.encode() + b"\n" + body).hexdigest()
