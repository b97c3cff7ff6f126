"""Where the three networks stand: one file, or the folders of a diffusers directory."""

import re
from collections.abc import Sequence
from pathlib import Path

from nti.weights_loader.checkpoint_file import CheckpointError
from nti.weights_loader.recognise import PICKLE_SUFFIXES, pickle_message

__all__ = ["NETWORKS", "network_files"]

NETWORKS = ("unet", "vae", "text")

FOLDERS = {"unet": "unet", "vae": "vae", "text": "text_encoder"}
"""Of a diffusers directory."""

STEMS = ("diffusion_pytorch_model", "model", "diffusion_pytorch_model.fp16", "model.fp16")
"""The files in them, the full-precision one first where both are there."""

INDEX_ENDS = (".index.json", ".index.fp16.json", ".fp16.index.json")
"""After `.safetensors`, of the index of a network in several files, as transformers and diffusers
spell it."""

PICKLED_WEIGHTS = re.compile(r"(diffusion_)?(pytorch_)?model\b.*\.bin")
"""The names of a network's weights, in one file or in several."""


def network_files(checkpoint: Path, vae: Path | None = None) -> dict[str, Path]:
    """Return the file of each network, or its index of several: `unet`, `vae`, `text`.

    Args:
        checkpoint: a `.safetensors` file, or a directory in diffusers' layout.
        vae: a file or directory whose autoencoder takes the place of the checkpoint's, which is not
            looked for.

    Raises:
        CheckpointError: something is missing or no safetensors file.

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
    return {network: _folder_file(directory / FOLDERS[network]) for network in networks}


def _vae_file(directory: Path) -> Path:
    inside = directory / FOLDERS["vae"]
    return _folder_file(inside if inside.is_dir() else directory)


def _folder_file(folder: Path) -> Path:
    names = [f"{stem}.safetensors" for stem in STEMS]
    indices = [f"{stem}.safetensors{end}" for end in INDEX_ENDS for stem in STEMS[:2]]
    for name in (*names, *indices):
        if (folder / name).is_file():
            return folder / name
    pickles = [p for p in sorted(folder.glob("*")) if p.suffix in PICKLE_SUFFIXES]
    if pickles:
        weights = [p for p in pickles if PICKLED_WEIGHTS.fullmatch(p.name)]
        full = [p for p in weights if ".fp16" not in p.name]
        name = names[1] if folder.name == FOLDERS["text"] else names[0]
        raise CheckpointError(pickle_message(full or weights or pickles[:1], name))
    got = ", ".join(sorted(p.name for p in folder.iterdir())) if folder.is_dir() else "no folder"
    raise CheckpointError(
        f"{folder}: got {got or 'nothing'}, expected one of {', '.join(names)}"
        f" (diffusers' layout), or give a single .safetensors file"
    )
