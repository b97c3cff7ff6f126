"""`invert`: an image and its caption to an `Inversion`."""

import math
from collections.abc import Callable

from nti.image import ImageLike, load_image
from nti.inversion.ddim import ddim_invert
from nti.inversion.null_text import (
    optimize_null_text,
    published_learning_rate,
    published_threshold,
)
from nti.inversion.record import METHODS, Inversion
from nti.model import StableDiffusion

__all__ = ["invert"]


def invert(
    model: StableDiffusion,
    image: ImageLike,
    prompt: str,
    *,
    steps: int = 50,
    guidance_scale: float | None = None,
    inner_steps: int = 10,
    method: str = "null-text",
    noise_at: str = "target",
    learning_rate: Callable[[int, int], float] = published_learning_rate,
    threshold: Callable[[int, int], float] = published_threshold,
    progress: bool = False,
) -> Inversion:
    """Invert an image (null-text inversion, arXiv 2211.09794, Algorithm 1).

    Args:
        model: the model.
        image: a path, a PIL image, or a tensor (3, H, W) or (1, 3, H, W) in [-1, 1].
        prompt: what the image shows.
        steps: T timesteps.
        guidance_scale: w; None: the model's own (7.5 for SD v1).
        inner_steps: N, at most this many iterations a timestep.
        method: `null-text`; or, without optimization, `negative-prompt` (the prompt's own embedding
            stands for the null embedding, arXiv 2305.16807) or `ddim` (psi("") at every timestep).
        noise_at: see `nti.inversion.ddim.ddim_invert`.
        learning_rate: of the inner iterations, a function of (index, steps).
        threshold: of the early stop, a function of (index, steps).
        progress: show bars.

    Returns:
        The inversion, its tensors on the CPU.

    Raises:
        ValueError: an image, number or method that cannot be.

    """
    if method not in METHODS:
        raise ValueError(f"method: got {method!r}, expected one of {', '.join(METHODS)}")
    if method == "null-text" and inner_steps < 1:
        raise ValueError(
            f"inner_steps: got {inner_steps}, expected 1 or more;"
            f" for none at all choose method='ddim'"
        )
    w = model.config.guidance_scale if guidance_scale is None else guidance_scale
    if not math.isfinite(w):
        raise ValueError(f"guidance_scale: got {w}, expected a finite number")
    schedule = model.schedule(steps)
    latent = model.encode_image(load_image(image, model.config.image_size))
    cond, null = model.encode_text([prompt]), model.encode_text([""])
    pivot = ddim_invert(model, latent, cond, schedule, noise_at=noise_at, progress=progress)
    result = optimize_null_text(
        model,
        pivot,
        cond,
        cond if method == "negative-prompt" else null,
        schedule,
        guidance_scale=w,
        inner_steps=inner_steps if method == "null-text" else 0,
        learning_rate=learning_rate,
        threshold=threshold,
        progress=progress,
    )
    return Inversion(
        prompt=prompt,
        method=method,
        guidance_scale=w,
        model_name=model.config.name,
        uncond=result.uncond[:, 0].cpu(),
        pivot=pivot[:, 0].cpu(),
        latents=result.latents[:, 0].cpu(),
        losses=result.losses[:, 0].cpu(),
    )
