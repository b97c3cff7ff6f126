"""A labelled picture of an inversion's cross-attention: one map a token, or one a word."""

from PIL import Image
from torch import Tensor

from nti.editing.alignment import words_of
from nti.image import to_pil
from nti.inversion.attention_maps import average_cross_attention
from nti.inversion.record import Inversion
from nti.model import StableDiffusion
from nti.sheet import contact_sheet, heat_image

__all__ = ["attention_grid"]

COLUMNS = 6
CELL = 160


def attention_grid(
    model: StableDiffusion, inversion: Inversion, *, by_word: bool = False, progress: bool = False
) -> Image.Image:
    """Draw the image and each token's average map (a word's tokens add up).

    Each map is drawn to its own maximum, which its label states. ValueError for another model's
    inversion.
    """
    maps = average_cross_attention(model, inversion, progress=progress)
    prompt = model.tokenizer.encode(inversion.prompt)
    if by_word:
        groups = [(word.text, list(word.tokens)) for word in words_of(prompt)]
    else:
        names = ["<start>", *prompt.pieces, "<end>"]
        groups = [(f"{i} {name}", [i]) for i, name in enumerate(names)]
    latent = inversion.latents[-1:].to(model.device, model.state_dtype)
    cells = [(to_pil(model.decode_latent(latent))[0], inversion.prompt)]
    for label, tokens in groups:
        token_map: Tensor = maps[tokens].sum(dim=0)
        cells.append((heat_image(token_map, CELL), f"{label}\nmax {token_map.max():.3f}"))
    rows = [cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS)]
    return contact_sheet(rows, cell=CELL)
