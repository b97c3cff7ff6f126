"""The file of a saved inversion: format 3, and formats 1 and 2 as older versions wrote them.

docs/format.md describes both.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from msgspec import Meta
from safetensors import SafetensorError
from torch import Tensor

from nti.fingerprint import NETWORKS, Fingerprint
from nti.image import Placement
from nti.inversion.provenance import Provenance
from nti.inversion.tensor_file import LARGEST, TensorFile, encode_tensors, read_tensors
from nti.weights_loader.metadata import convert, printable

__all__ = ["KEY", "OPTIONAL", "Header", "InversionFileError", "encode", "header_words", "read"]

KEY = "inversion"
"""The metadata's key under which the header is."""

FORMATS = ("nti-inversion-1", "nti-inversion-2", "nti-inversion-3")

TENSORS = ("uncond", "pivot", "latents", "losses")
OPTIONAL = ("cond", "offsets")
ROUNDED = ("uncond", "pivot", "latents", *OPTIONAL)
"""What half precision is for."""

EMBEDDINGS = ("uncond", "cond")
"""Of each timestep, or one for all of them."""

WEIGHTS = {network: f"weights.{network}" for network in NETWORKS}

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

STEPS, SIDE, TOKENS, WIDTH = 10_000, 4096, 4096, 16384
"""The most timesteps, latent positions along a side, tokens and channels of an embedding."""

Text = Annotated[str, Meta(max_length=100_000)]


class InversionFileError(ValueError):
    """A file that is no saved inversion; the message says what was found instead."""


@dataclass(frozen=True)
class Header:
    """What is said in words and numbers."""

    prompt: Text
    method: Text
    guidance_scale: float
    model_name: Text
    placement: Placement | None = None
    made: Provenance | None = None
    iterations: list[int] | None = None
    """What the losses say, too: for readers that do not look at tensors."""
    networks: dict[str, dict[str, Any]] | None = None
    """What the model computes by that no weight holds; see `Fingerprint.numbers`."""
    format: str = FORMATS[0]


def encode(
    header: Header,
    tensors: Mapping[str, Tensor],
    weights: Fingerprint | None,
    dtype: torch.dtype | None,
) -> bytes:
    """Return the bytes of a file of format 3; see `Inversion.to_bytes`."""
    if dtype not in (None, torch.float16, torch.bfloat16):
        raise ValueError(f"dtype: got {dtype}, expected torch.float16, torch.bfloat16 or None")
    kept = dict(tensors)
    for name in kept.keys() & set(EMBEDDINGS):
        if torch.equal(kept[name], kept[name][:1].expand_as(kept[name])):
            kept[name] = kept[name][:1]
    for name in kept.keys() & set(ROUNDED) if dtype is not None else ():
        kept[name] = kept[name].to(dtype)
        if not kept[name].isfinite().all():
            raise ValueError(f"dtype: got {dtype}, expected one that can hold all of {name}")
    if weights is not None:
        kept |= {WEIGHTS[network]: weights.samples[network] for network in NETWORKS}
    return encode_tensors(KEY, header_words(header, weights), kept)


def header_words(header: Header, weights: Fingerprint | None) -> dict[str, Any]:
    """Return the header of a file of format 3 as what JSON can hold."""
    numbers = header.networks if weights is None else weights.numbers
    return {**asdict(header), "format": FORMATS[-1], "networks": numbers}


def read(path: str | Path) -> tuple[Header, dict[str, Tensor], Fingerprint | None]:
    """Read a file of any format: what `encode` was given, with half precision as float32.

    Raises InversionFileError, its message naming the file.
    """
    path = Path(path)
    if not path.is_file():
        raise InversionFileError(
            f"{path}: no such file; expected an inversion saved by `nti invert`"
        )
    try:
        file = read_tensors(path, KEY)
        found = file.header.get("format", file.metadata.get("format"))
        if found not in FORMATS:
            raise ValueError(f"got format {found!r}, expected one of {', '.join(FORMATS)}")
        header = convert(dict(file.header), Header, "header")
        if found != FORMATS[0] and not file.verified:
            raise ValueError("got no digest, expected one in this format")
        _check_placement(header.placement)
        return header, _checked(file), _fingerprint(header, file)
    except (ValueError, SafetensorError) as error:
        raise InversionFileError(
            f"{path}: not a saved inversion ({printable(str(error))}): make one with `nti invert`"
        ) from error


def _checked(file: TensorFile) -> dict[str, Tensor]:
    """Return the tensors in float32 or float64, once types and sizes have proved to fit."""
    missing = [name for name in TENSORS if name not in file.tensors]
    unknown = file.tensors.keys() - {*TENSORS, *OPTIONAL, *WEIGHTS.values()}
    if missing or unknown:
        raise ValueError(
            f"tensors: got no {', '.join(missing) or 'missing one'}, and unknown ones:"
            f" {', '.join(sorted(unknown)) or 'none'}, expected {', '.join(TENSORS)}"
        )
    tensors = {n: file.tensors[n] for n in (*TENSORS, *OPTIONAL) if n in file.tensors}
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise ValueError(f"{name}: got {tensor.dtype}, expected one of {DTYPES}")
        if tensor.dtype.itemsize == 2:
            tensors[name] = tensor.float()
    embedding, latents = (STEPS, TOKENS, WIDTH), (STEPS + 1, 64, SIDE, SIDE)
    most = {"uncond": embedding, "cond": embedding, "pivot": latents}
    for name in most.keys() & tensors.keys():
        shape, bounds = tuple(tensors[name].shape), most[name]
        fits = len(shape) == len(bounds) and all(
            1 <= n <= bound for n, bound in zip(shape, bounds, strict=True)
        )
        if not fits:
            raise ValueError(f"{name}: got {shape}, expected from 1 to {bounds}")
    steps = len(tensors["pivot"]) - 1
    for name in tensors.keys() & set(EMBEDDINGS):
        if steps < 1 or steps * tensors[name][0].nbytes > LARGEST:
            raise ValueError(f"{name}: got {tuple(tensors[name].shape)} for {steps} timesteps")
        if len(tensors[name]) == 1:
            tensors[name] = tensors[name].repeat(steps, 1, 1)
    return tensors


def _fingerprint(header: Header, file: TensorFile) -> Fingerprint | None:
    names = [name for name in WEIGHTS.values() if name in file.tensors]
    if not names and header.networks is None:
        return None
    numbers = header.networks or {}
    if len(names) < len(WEIGHTS) or set(numbers) != set(NETWORKS):
        raise ValueError(
            f"got {', '.join(names) or 'no weights'} and networks {', '.join(numbers) or 'none'},"
            f" expected all of {', '.join(WEIGHTS.values())} and networks {', '.join(NETWORKS)}"
        )
    samples = {network: file.tensors[name] for network, name in WEIGHTS.items()}
    for network, values in samples.items():
        if values.ndim != 1 or values.dtype != torch.float32 or not values.isfinite().all():
            raise ValueError(f"{WEIGHTS[network]}: expected finite float32 in one dimension")
    return Fingerprint(samples, numbers)


def _check_placement(placement: Placement | None) -> None:
    if placement is None:
        return
    for name, (left, top, right, bottom), (width, height) in (
        ("taken", placement.taken, placement.original),
        ("filled", placement.filled, placement.size),
    ):
        inside = 0 <= left < right <= width and 0 <= top < bottom <= height
        if not inside or max(width, height) > 10**6:
            raise ValueError(
                f"placement.{name}: got {(left, top, right, bottom)} in {width}x{height},"
                " expected a box inside"
            )
