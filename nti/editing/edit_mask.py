"""Where an edit may change the picture: a mask of its pixels, and the same of its latent."""

import os
from dataclasses import dataclass

import torch
from einops import rearrange, reduce, repeat
from PIL import Image
from torch import Tensor

from nti.arguments import shown
from nti.editing.alignment import has_word, token_positions, words_of
from nti.editing.attention_maps import average_attention
from nti.editing.local_blend import blend_mask
from nti.errors import Callback
from nti.image import ImageArray, ImageFile, ImageLike, open_image
from nti.inversion.inversion import Inversion
from nti.model import StableDiffusion

__all__ = ["EditMask", "MaskLike", "is_word"]

MaskLike = ImageLike
"""A picture of a mask, white where to edit, as a file, an image or an array; a tensor (H, W) of
bool or of numbers in [0, 1]; or a word of the source's prompt, where there is no file of its name.
What is half or more counts as white, and so does what is transparent."""

WHITE = 128
"""Of 255: the darkest grey that counts as white."""


def is_word(mask: MaskLike) -> bool:
    """Whether a mask is given as a word of the source's prompt."""
    return isinstance(mask, str) and not os.path.isfile(mask)


@dataclass(frozen=True, eq=False)
class EditMask:
    """One mask for all edits of a picture, on the CPU."""

    pixels: Tensor
    """(H, W) bool: True where the picture may change."""
    latent: Tensor
    """(h, w) bool: True where any pixel of a latent's position may change, so that no part of a
    thin mask is lost."""

    @classmethod
    def create(
        cls,
        model: StableDiffusion,
        inversion: Inversion,
        mask: MaskLike,
        *,
        threshold: float,
        callback: Callback | None = None,
    ) -> "EditMask":
        """Read a mask, or find it in the attention of a word.

        Args:
            model: the model that the inversion was made with.
            inversion: of the picture.
            mask: see `MaskLike`.
            threshold: share of its maximum above which a word's attention counts.
            callback: hears of the T steps that a word takes.

        Raises:
            ValueError: what is no mask, one of another size, an empty one, or one that covers
            everything.

        """
        side = model.config.vae.downsampling
        if isinstance(mask, str) and is_word(mask):
            latent = _of_word(model, inversion, mask, threshold, callback)
            pixels = repeat(latent, "h w -> (h y) (w x)", y=side, x=side)
            advice = "choose another word, or another mask_threshold"
        else:
            pixels = _of_tensor(mask) if isinstance(mask, Tensor) else _of_picture(mask)
            _check_size(pixels, inversion, side)
            latent = reduce(pixels, "(h y) (w x) -> h w", "max", y=side, x=side)
            advice = "make it white where the picture is to change"
        if not pixels.any():
            raise ValueError(f"mask: got an empty one, expected a part of the picture: {advice}")
        if pixels.all():
            raise ValueError(
                f"mask: got one that covers everything, expected a part of the picture: {advice},"
                " or edit with sdedit, which needs no mask"
            )
        return cls(pixels, latent)

    def paste(self, edited: Image.Image, source: Image.Image) -> Image.Image:
        """Return the edited picture inside the mask, and the source's own pixels outside."""
        height, width = self.pixels.shape
        values = bytes(self.pixels.to(torch.uint8).mul(255).flatten().tolist())
        return Image.composite(edited, source, Image.frombytes("L", (width, height), values))


def _of_word(
    model: StableDiffusion,
    inversion: Inversion,
    word: str,
    threshold: float,
    callback: Callback | None,
) -> Tensor:
    """Threshold a word's attention, averaged over the steps, as local blend does: (h, w) bool."""
    prompt = model.tokenizer.encode(inversion.prompt)
    if not has_word(prompt, word):
        listed = ", ".join(repr(known.text) for known in words_of(prompt)) or "none"
        raise ValueError(
            f"mask: got {shown(word)}, expected a file that is there, or a word of the source's"
            f" prompt: {listed}"
        )
    if not inversion.row.sampled:
        raise ValueError(
            f"mask: got the word {word!r} for an inversion by {inversion.method}, which has no"
            " trajectory with any attention: give a picture of the mask, or invert with another"
            " method"
        )
    maps = average_attention(model, inversion, callback=callback)[:1]
    found = maps[..., list(token_positions(prompt, word))].sum(dim=-1)
    height, width = inversion.latents.shape[-2:]
    return blend_mask(found, (height, width), pool=True, threshold=threshold)[0]


def _of_picture(mask: ImageFile) -> Tensor:
    """(H, W) bool of a file, an image or an array."""
    if isinstance(mask, ImageArray) and str(mask.dtype) == "bool" and len(mask.shape) == 2:
        return torch.frombuffer(bytearray(mask.tobytes()), dtype=torch.bool).view(mask.shape)
    try:
        grey = open_image(mask).convert("L")
    except ValueError as error:
        raise ValueError(f"mask: {str(error).removeprefix('image: ')}") from error
    levels = torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8)
    return rearrange(levels, "(h w) -> h w", w=grey.width) >= WHITE


def _of_tensor(mask: Tensor) -> Tensor:
    """(H, W) bool of a tensor of bool, or of numbers in [0, 1]."""
    if mask.ndim != 2 or mask.is_complex():
        raise ValueError(
            f"mask: got a tensor {tuple(mask.shape)} of {mask.dtype}, expected (H, W) of bool, or"
            " of numbers in [0, 1]"
        )
    values = mask.detach().cpu()
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(
            f"mask: got values from {values.min():g} to {values.max():g}, expected [0, 1]: scale"
            " them, or give mask > 0"
        )
    return values >= 0.5


def _check_size(pixels: Tensor, inversion: Inversion, side: int) -> None:
    height, width = (side * n for n in inversion.latents.shape[-2:])
    if pixels.shape != (height, width):
        raise ValueError(
            f"mask: got {pixels.shape[1]}x{pixels.shape[0]}, expected {width}x{height}, the size"
            " at which the image was inverted: crop and scale the mask as the image was"
        )
