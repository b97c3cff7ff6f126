"""SDEdit: an edit from the noised image (Meng et al. 2021, arXiv 2108.01073)."""

from collections.abc import Sequence

import torch

from nti.arguments import a_callable, a_whole_number
from nti.editing.edit_rows import EditRows
from nti.editing.result import EditedLatents, EditResult, decoded
from nti.errors import Callback
from nti.inversion.inversion import Inversion
from nti.inversion.noised import noised_by_one
from nti.model import StableDiffusion

__all__ = ["sdedit"]


@torch.no_grad()
def sdedit(
    model: StableDiffusion,
    inversion: Inversion,
    prompts: str | Sequence[str],
    *,
    strength: float = 0.7,
    seed: int = 0,
    guidance_scale: float | None = None,
    negative_prompt: str | None = None,
    mix: float | None = None,
    callback: Callback | None = None,
) -> EditResult:
    """Noise the image part of the way, and sample from there with the edited prompts.

    The steps use the inversion's null embeddings. With those of null-text inversion this is the
    arm "SDEdit + NTI" of Fig. 8 of its paper (arXiv 2211.09794); `negative_prompt=""` gives SDEdit
    itself. Sampling starts from z_t = sqrt(alpha_bar_t) z_0 + sqrt(1 - alpha_bar_t) eps, where z_0
    is the encoded image and eps the same noise for all edits. No trajectory is needed, so that an
    inversion by `autoencoder` will do.

    Args:
        model: the model that the inversion was made with.
        inversion: of the source image.
        prompts: E edited prompts, or one.
        strength: t_0, the share of the steps that are taken, 0 to 1: sampling starts at step
            T - int(T strength). 0 gives the autoencoder's reconstruction; at 1 hardly anything of
            the image is left.
        seed: of the noise, which is drawn on the CPU and so the same on every device.
        guidance_scale: w of the edits; None: the inversion's.
        negative_prompt: its embedding takes the place of the inversion's null embeddings at every
            step; None: those of the inversion.
        mix: see `nti.edit_latents`.
        callback: see `nti.errors.Callback`.

    Returns:
        The edits. `source` is the autoencoder's reconstruction, and `masks` None.

    Raises:
        ValueError: settings that do not fit, with what was got and expected.
        NotFiniteError: latents that overflow.
        Stopped: by the callback.

    """
    rows = EditRows.create(
        model, inversion, prompts, guidance_scale=guidance_scale, negative_prompt=negative_prompt,
        mix=mix,
    ).off_trajectory()  # fmt: skip
    start = rows.schedule.first_step(strength)
    generator = torch.Generator().manual_seed(a_whole_number("seed", seed, 0, 2**63 - 1))
    a_callable("callback", callback)
    z_0 = rows.encoded
    edits = noised_by_one(z_0, rows.schedule, generator)[start].expand(rows.count, -1, -1, -1)
    latents = rows.sample(edits, start, "SDEdit", callback)
    return decoded(model, EditedLatents(latents, z_0, None))
