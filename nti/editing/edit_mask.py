"""Where an edit may change the picture: a mask of its pixels, and the same of its latent."""

import os
from dataclasses import dataclass

from einops import reduce, repeat
from PIL import Image
from torch import Tensor

from nti.arguments import shown
from nti.editing.alignment import has_word, token_positions, words_of
from nti.editing.attention_maps import average_attention
from nti.editing.local_blend import blend_mask
from nti.errors import Callback
from nti.image import MaskLike, load_mask
from nti.image.pasting import as_picture
from nti.inversion.inversion import Inversion
from nti.model import StableDiffusion

__all__ = ["EditMask", "is_word"]


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
            mask: white where to edit, see `nti.image.load_mask`; or a word of the source's prompt,
                where there is no file of its name.
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
            height, width = (side * n for n in inversion.latents.shape[-2:])
            pixels = load_mask(mask, (width, height), inversion.placement)[0, 0].cpu()
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
        return Image.composite(edited, source, as_picture(self.pixels))


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
