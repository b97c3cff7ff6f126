"""Labelled pictures of averaged attention: a map a token or word, or principal components."""

from PIL import Image
from torch import Tensor

from nti.arguments import a_whole_number
from nti.contact_sheet import contact_sheet, heat_image
from nti.editing.alignment import words_of
from nti.editing.attention_maps import (
    average_attention,
    check_count,
    self_attention_components,
)
from nti.editing.edit_rows import check_objects
from nti.editing.plan import EditPlan
from nti.errors import Callback
from nti.image import to_pil
from nti.inversion.inversion import Inversion
from nti.model import StableDiffusion

__all__ = ["attention_grid", "component_grid", "token_cells"]

COLUMNS = 6
CELL = 160

Cell = tuple[Image.Image, str]


def attention_grid(
    model: StableDiffusion,
    inversion: Inversion,
    plan: EditPlan | None = None,
    *,
    by_word: bool = False,
    level: int | None = None,
    places: tuple[str, ...] = ("down", "up"),
    block: int | None = None,
    guidance_scale: float | None = None,
    callback: Callback | None = None,
) -> Image.Image:
    """Draw the image and each token's average map (a word's tokens add up), then those of edits.

    Each map is drawn to its own maximum, which its label states. The arguments and errors are those
    of `average_attention`.
    """
    maps = average_attention(
        model, inversion, plan, level=level, places=places, block=block,
        guidance_scale=guidance_scale, callback=callback,
    )  # fmt: skip
    prompts = [inversion.prompt, *(() if plan is None else plan.prompts)]
    rows: list[list[Cell]] = []
    for number, (prompt, its_maps) in enumerate(zip(prompts, maps, strict=True)):
        cells = _image_cell(model, inversion, prompt) if number == 0 else []
        cells += token_cells(model, prompt, its_maps, by_word)
        rows += [cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS)]
    return contact_sheet(rows, cell=CELL)


def component_grid(
    model: StableDiffusion,
    inversion: Inversion,
    count: int,
    *,
    level: int | None = None,
    places: tuple[str, ...] = ("down", "up"),
    block: int | None = None,
    callback: Callback | None = None,
) -> Image.Image:
    """Draw the image and the principal components of its self-attention, the strongest first.

    Each is drawn from its smallest value to its largest. The arguments and errors are those of
    `average_attention` and `self_attention_components`.
    """
    check_objects(model, inversion)
    at = model.config.unet.word_map_level if level is None else a_whole_number("level", level, 0)
    count = check_count(count, inversion.latents[0, 0].numel() // 4**at)  # before the work
    maps = average_attention(
        model, inversion, kind="self", level=level, places=places, block=block, callback=callback
    )
    components = self_attention_components(maps[0], count)
    cells = _image_cell(model, inversion, inversion.prompt)
    for number, component in enumerate(components, 1):
        cells.append((heat_image(component - component.min(), CELL), f"component {number}"))
    return contact_sheet(
        [cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS)], cell=CELL
    )


def _image_cell(model: StableDiffusion, inversion: Inversion, label: str) -> list[Cell]:
    latent = inversion.latents[-1:].to(model.device, model.state_dtype)
    return [(to_pil(model.decode_latent(latent))[0], label)]


def token_cells(model: StableDiffusion, text: str, maps: Tensor, by_word: bool) -> list[Cell]:
    """Return a labelled cell for each token or word of a prompt, of maps (h, w, 77)."""
    prompt = model.tokenizer.encode(text)
    if by_word:
        groups = [(word.text, list(word.tokens)) for word in words_of(prompt)]
    else:
        names = ["<start>", *prompt.pieces, "<end>"]
        groups = [(f"{i} {name}", [i]) for i, name in enumerate(names)]
    cells = []
    for label, tokens in groups:
        token_map: Tensor = maps[..., tokens].sum(dim=-1)
        cells.append((heat_image(token_map, CELL), f"{label}\nmax {token_map.max():.3f}"))
    return cells
