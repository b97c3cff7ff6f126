"""What an edit gives."""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from nti.editing.alignment import Alignment
from nti.image import to_pil
from nti.model import StableDiffusion

__all__ = ["EditResult", "EditedLatents", "decoded", "drawn"]


@dataclass(frozen=True, eq=False)
class EditedLatents:
    """What an edit of E prompts gives before it is decoded, on the model's device."""

    latents: Tensor
    """The edits' latents, in sampling order: (steps - start + 1, E, 4, h, w)."""
    source: Tensor
    """The source's last latent as the batch had it: (1, 4, h, w)."""
    masks: Tensor | None
    """Where each edit was allowed to change, by step: (steps - start, E, h, w) bool, or None."""


@dataclass(frozen=True, eq=False)
class EditResult:
    """What an edit of E prompts gives."""

    images: list[Image.Image]
    """The edited images."""
    latents: Tensor
    """The edits' latents, in sampling order: (steps - start + 1, E, 4, h, w)."""
    source: Image.Image
    """The source as the batch had it: the inversion's reconstruction. Of editors that start from
    the encoded image, the autoencoder's."""
    masks: Tensor | None
    """Where each edit was allowed to change, by step: (steps - start, E, h, w) bool, or None."""
    alignments: tuple[Alignment, ...] = ()
    """How Prompt-to-Prompt aligned each prompt with the source's; `.mode` tells what `auto` chose.
    Other editors align nothing."""
    mask: Tensor | None = None
    """(H, W) bool, of an editor that keeps pixels: where it is False, they are `source`'s own."""


def drawn(
    edited: EditedLatents, pixels: Tensor, alignments: tuple[Alignment, ...] = ()
) -> EditResult:
    """Return the result whose decoded latents are given: (1 + E, 3, H, W), the source's first."""
    source, *images = to_pil(pixels)
    masks = None if edited.masks is None else edited.masks.cpu()
    return EditResult(images, edited.latents.cpu(), source, masks, alignments)


def decoded(model: StableDiffusion, edited: EditedLatents) -> EditResult:
    """Decode what an editor gives. NotFiniteError for latents that overflow the decoder."""
    return drawn(edited, model.decode_latent(torch.cat([edited.source, edited.latents[-1]])))
