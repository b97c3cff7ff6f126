"""CLIP by open_clip, from a file or folder of this machine."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

__all__ = ["Clip", "embedded_clip", "load_clip"]

CONFIG = "open_clip_config.json"

AT_ONCE = 512
"""Texts of one batch."""


@dataclass(frozen=True, eq=False)
class Clip:
    """A model of open_clip with its preprocessing and tokenizer."""

    model: Any
    preprocess: Callable[[Image.Image], Tensor]
    tokenize: Callable[[Sequence[str]], Tensor]
    config: dict[str, Any]
    """What its `open_clip_config.json` says, or nothing."""

    @cached_property
    def digest(self) -> str:
        """Of the weights, by some values of each."""
        found = hashlib.sha256()
        for name, weight in sorted(self.model.state_dict().items()):
            some = weight.flatten()[:: max(1, weight.numel() // 8)].double()
            found.update(f"{name} {tuple(weight.shape)} {some.tolist()}".encode())
        return found.hexdigest()[:24]

    @property
    def captions(self) -> bool:
        """Whether it writes captions, as CoCa does."""
        return hasattr(self.model, "text_decoder")

    @torch.no_grad()
    def images(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Return (B, D) of length 1."""
        return F.normalize(self.model.encode_image(self.pixels(pictures)), dim=-1)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return (B, D) of length 1; a text that is too long is cut."""
        parts = [
            self.model.encode_text(self.tokenize(texts[i : i + AT_ONCE]))
            for i in range(0, len(texts), AT_ONCE)
        ]
        return F.normalize(torch.cat(parts), dim=-1)

    def pixels(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Return (B, 3, S, S) as the model takes them."""
        return torch.stack([self.preprocess(picture.convert("RGB")) for picture in pictures])


def load_clip(path: str | Path | None, name: str | None = None) -> Clip:
    """Load a model.

    Args:
        path: a folder with `open_clip_config.json` and weights, as open_clip saves them; or a file
            of weights. None: the small one of the embedded model's world.
        name: of a file's architecture among open_clip's (`ViT-L-14`, `coca_ViT-B-32`, ...).

    Raises:
        ValueError: what is not there, or is no such model.

    """
    import open_clip

    path = embedded_clip() if path is None else Path(path)
    if path.is_dir():
        if not (path / CONFIG).is_file():
            raise ValueError(f"{path}: got no {CONFIG}, expected a folder as open_clip saves it")
        what, weights, config = f"local-dir:{path}", None, _config(path / CONFIG)
    elif not path.is_file():
        raise ValueError(f"{path}: no such file; expected a model of open_clip")
    elif name is None or name not in open_clip.list_models():
        raise ValueError(
            f"{path}: got the architecture {name!r}, expected the name of one that open_clip has,"
            " such as ViT-L-14 or coca_ViT-B-32"
        )
    else:
        what, weights, config = name, str(path), {}
    handlers = list(logging.root.handlers)
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(what, pretrained=weights)
        tokenize = open_clip.get_tokenizer(what)
    except Exception as error:  # whatever a file leads PyTorch and open_clip to
        raise ValueError(f"{path}: not a model that open_clip can load ({error})") from error
    finally:
        logging.root.handlers[:] = handlers  # open_clip logs there, which sets one up
    return Clip(model.eval().requires_grad_(False), preprocess, tokenize, config)


def embedded_clip() -> Path:
    """Where the small CLIP of the embedded model's world is."""
    return Path(str(resources.files("nti.weights_loader") / "shapes_clip"))


def _config(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: got no JSON that can be read ({error})") from error
    return found if isinstance(found, dict) else {}
