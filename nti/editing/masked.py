"""Blended latent diffusion: an edit of a part of the picture (Avrahami et al. 2022, arXiv
2206.02779).
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from nti.arguments import a_callable, a_number, a_whole_number
from nti.editing.edit_mask import EditMask, is_word
from nti.editing.edit_rows import EditRows
from nti.editing.local_blend import THRESHOLD
from nti.editing.result import EditedLatents, EditResult, decoded
from nti.errors import Callback, part_of
from nti.image import ImageFile, MaskLike, fit_image, match_original, to_pil
from nti.inversion.inversion import Inversion
from nti.inversion.noised import independently_noised
from nti.model import StableDiffusion

__all__ = ["masked"]


@torch.no_grad()
def masked(
    model: StableDiffusion,
    inversion: Inversion,
    prompts: str | Sequence[str],
    *,
    mask: MaskLike,
    strength: float = 0.75,
    seed: int = 0,
    mask_threshold: float = THRESHOLD,
    original: ImageFile | None = None,
    guidance_scale: float | None = None,
    negative_prompt: str | None = None,
    mix: float | None = None,
    callback: Callback | None = None,
) -> EditResult:
    """Sample the edited prompts inside a mask, and keep the picture outside of it.

    Sampling starts as SDEdit's does. After each step the latent outside the mask becomes that of
    the encoded image, noised anew to the timestep at which the step arrives, and z_0 itself after
    the last one. The published code noises it to the timestep that the step leaves, and so ends
    with noise outside the mask; this function does not. After decoding, the pixels outside the mask
    are the source picture's own. No trajectory is needed, unless the mask is given as a word.

    Args:
        model: the model that the inversion was made with.
        inversion: of the source image.
        prompts: E edited prompts, or one.
        mask: white where to edit, of the photograph's size or of that at which it was inverted (see
            `nti.image.load_mask`); or a word of the source's prompt, for where it attends on
            average over the steps, by local blend's rule. A position of the latent is edited where
            any of its pixels is.
        strength: the share of the steps that are taken, 0 to 1: sampling starts at step
            T - int(T strength). The published script has 0.75.
        seed: of all noises, which are drawn on the CPU.
        mask_threshold: share of its maximum above which a word's attention counts, 0 to 1.
        original: the image that was inverted, whose pixels then stand outside the mask, at the size
            at which it was inverted; None: the autoencoder's reconstruction of them.
        guidance_scale: w of the edits; None: the inversion's.
        negative_prompt: its embedding takes the place of the inversion's null embeddings at every
            step; None: those of the inversion.
        mix: see `nti.edit_latents`.
        callback: see `nti.errors.Callback`; a word adds T steps.

    Returns:
        The edits. `source` is the picture whose pixels stand outside `mask`. `nti.paste_back`
        takes that mask, or the picture of it, so that they stay at the original's size, too.

    Raises:
        ValueError: settings that do not fit; a mask of another size, an empty one, or one that
            covers everything.
        NotFiniteError: latents that overflow.
        Stopped: by the callback.

    """
    rows = EditRows.create(
        model, inversion, prompts, guidance_scale=guidance_scale, negative_prompt=negative_prompt,
        mix=mix,
    ).off_trajectory()  # fmt: skip
    steps, start = rows.schedule.steps, rows.schedule.first_step(strength)
    generator = torch.Generator().manual_seed(a_whole_number("seed", seed, 0, 2**63 - 1))
    threshold = a_number("mask_threshold", mask_threshold, 0, 1, ", a share of the maximum")
    a_callable("callback", callback)
    fitted = None if original is None else _fitted(original, inversion)
    before = steps if is_word(mask) else 0
    total = before + steps - start
    where = EditMask.create(
        model, inversion, mask, threshold=threshold, callback=part_of(callback, 0, total)
    )
    inside = where.latent.to(model.device)
    z_0 = rows.encoded
    known = independently_noised(z_0, rows.schedule, generator)

    def blended(i: int, edits: Tensor) -> Tensor:
        return torch.where(inside, edits, known[i + 1])

    edits = known[start].expand(rows.count, -1, -1, -1)
    counted = part_of(callback, before, total)
    latents = rows.sample(edits, start, "masked edit", counted, after=blended)
    masks = inside.expand(steps - start, rows.count, -1, -1)
    result = decoded(model, EditedLatents(latents, z_0, masks))
    source = result.source if fitted is None else fitted
    images = [where.paste(image, source) for image in result.images]
    return replace(result, images=images, source=source, mask=where.pixels)


def _fitted(original: ImageFile, inversion: Inversion) -> Image.Image:
    """Return the original as it was inverted; ValueError for another image's size."""
    upright, placement = match_original(original, inversion.placement)
    return to_pil(fit_image(upright, placement))[0]
