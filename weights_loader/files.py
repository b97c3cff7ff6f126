"""Where the three networks stand: one file, or the folders of a diffusers directory; and what the
header of such a file says.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nti.weights_loader.recognise import PICKLE_SUFFIXES, pickle_message
from safetensors import SafetensorError, safe_open

__all__ = [
    "NETWORKS",
    "CheckpointError",
    "TensorHeader",
    "network_files",
    "read_header",
    "read_metadata",
]

NETWORKS = ("unet", "vae", "text")

FOLDERS = {"unet": "unet", "vae": "vae", "text": "text_encoder"}
"""Of a diffusers directory."""

STEMS = ("diffusion_pytorch_model", "model", "diffusion_pytorch_model.fp16", "model.fp16")
"""The files in them, the full-precision one first where both are there."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded; the message lists what is wrong with it."""


@dataclass(frozen=True)
class TensorHeader:
    """What a file's header says of one tensor."""

    shape: tuple[int, ...]
    dtype: str
    """As safetensors spells it: `F32`, `F16`, `BF16`, ..."""


def network_files(checkpoint: Path, vae: Path | None = None) -> dict[str, Path]:
    """Return the file of each network: `unet`, `vae`, `text`.

    Args:
        checkpoint: a `.safetensors` file, or a directory in diffusers' layout.
        vae: a file or directory whose autoencoder takes the place of the checkpoint's, which is not
            looked for.

    Raises:
        CheckpointError: something is missing or no safetensors file, or a directory whose scheduler
        says that the model does not predict the noise.

    """
    given = {} if vae is None else {"vae": _vae_file(vae) if vae.is_dir() else vae}
    wanted = [network for network in NETWORKS if network not in given]
    if checkpoint.is_dir():
        found = _directory_files(checkpoint, wanted)
    else:
        found = dict.fromkeys(wanted, checkpoint)
    return {network: (found | given)[network] for network in NETWORKS}


def _directory_files(directory: Path, networks: Sequence[str]) -> dict[str, Path]:
    if (directory / "text_encoder_2").is_dir():
        raise CheckpointError(
            f"{directory}: got Stable Diffusion XL (there is a text_encoder_2), expected"
            f" Stable Diffusion v1"
        )
    scheduler = directory / "scheduler" / "scheduler_config.json"
    if scheduler.is_file():
        prediction = json.loads(scheduler.read_text("utf-8")).get("prediction_type", "epsilon")
        if prediction != "epsilon":
            raise CheckpointError(
                f"{directory}: got a model that predicts {prediction!r} by its scheduler's"
                f" configuration, expected 'epsilon', the noise, as Stable Diffusion v1 does"
            )
    return {network: _folder_file(directory / FOLDERS[network]) for network in networks}


def _vae_file(directory: Path) -> Path:
    inside = directory / FOLDERS["vae"]
    return _folder_file(inside if inside.is_dir() else directory)


def _folder_file(folder: Path) -> Path:
    names = [f"{stem}.safetensors" for stem in STEMS]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    pickles = [p for p in sorted(folder.glob("*")) if p.suffix in PICKLE_SUFFIXES]
    if pickles:
        raise CheckpointError(pickle_message(pickles[0]))
    got = ", ".join(sorted(p.name for p in folder.iterdir())) if folder.is_dir() else "no folder"
    raise CheckpointError(
        f"{folder}: got {got or 'nothing'}, expected one of {', '.join(names)}"
        f" (diffusers' layout), or give a single .safetensors file"
    )


def open_file(path: Path) -> safe_open:
    """Map a safetensors file; CheckpointError where there is none or it is none."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a .safetensors checkpoint")
    if path.suffix in PICKLE_SUFFIXES:
        raise CheckpointError(pickle_message(path))
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: not a safetensors file ({error}); if it was downloaded, it may be cut short"
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
