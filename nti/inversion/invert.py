"""`invert`: an image and its caption to an `Inversion`."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, cast, overload

import torch
from torch import Tensor

from nti.compilation import recorded
from nti.image import ImageLike, Placement, fit_image, load_image, open_image
from nti.inversion.ddim import ddim_invert
from nti.inversion.null_text import (
    optimize_null_text,
    published_learning_rate,
    published_threshold,
)
from nti.inversion.record import METHODS, Inversion
from nti.model import StableDiffusion

__all__ = ["Size", "invert"]

Size = int | tuple[int, int] | Literal["native"]
"""The side of a square, (width, height), or the image's own size, each side rounded to the model's
granularity."""


@overload
def invert(  # type: ignore[overload-overlap]  # a string is a sequence of strings
    model: StableDiffusion,
    image: ImageLike,
    prompt: str,
    *,
    size: Size | None = None,
    fit: str = "crop",
    steps: int = 50,
    guidance_scale: float | None = None,
    inner_steps: int = 10,
    method: str = "null-text",
    noise_at: str = "target",
    learning_rate: Callable[[int, int], float] = published_learning_rate,
    threshold: Callable[[int, int], float] = published_threshold,
    progress: bool = False,
) -> Inversion: ...


@overload
def invert(
    model: StableDiffusion,
    image: Sequence[ImageLike],
    prompt: Sequence[str],
    *,
    size: Size | None = None,
    fit: str = "crop",
    steps: int = 50,
    guidance_scale: float | None = None,
    inner_steps: int = 10,
    method: str = "null-text",
    noise_at: str = "target",
    learning_rate: Callable[[int, int], float] = published_learning_rate,
    threshold: Callable[[int, int], float] = published_threshold,
    progress: bool = False,
) -> list[Inversion]: ...


@torch.inference_mode(mode=False)  # the embedding learns, whatever mode the caller is in
def invert(
    model: StableDiffusion,
    image: ImageLike | Sequence[ImageLike],
    prompt: str | Sequence[str],
    *,
    size: Size | None = None,
    fit: str = "crop",
    steps: int = 50,
    guidance_scale: float | None = None,
    inner_steps: int = 10,
    method: str = "null-text",
    noise_at: str = "target",
    learning_rate: Callable[[int, int], float] = published_learning_rate,
    threshold: Callable[[int, int], float] = published_threshold,
    progress: bool = False,
) -> Inversion | list[Inversion]:
    """Invert an image, or many at once (null-text inversion, arXiv 2211.09794, Algorithm 1).

    Each image of a batch has its own embedding, optimizer and early stop: what comes back is what
    inverting them one by one gives.

    Args:
        model: the model.
        image: a path, a PIL image, or a tensor (3, H, W) or (1, 3, H, W) in [-1, 1]; or a list of
            such, which come to one size.
        prompt: what the image shows; with a list of images a list, one for each.
        size: in pixels; None: the square that the model was trained at. A tensor is taken as is.
        fit: how an image of another shape is brought to it: `crop` keeps its middle, `pad` all of
            it and continues its edges, `stretch` changes its shape.
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
        The inversion, its tensors on the CPU; for a list of images a list.

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
    images, prompts = _pairs(image, prompt)
    fitted = [_fitted(model, each, size, fit) for each in images]
    latent = model.encode_image(_stacked([pixels for pixels, _ in fitted]))
    cond = model.encode_text(prompts)
    null = model.encode_text([""]).expand_as(cond).contiguous()
    model = recorded(model)
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
    made = [
        Inversion(
            prompt=words,
            method=method,
            guidance_scale=w,
            model_name=model.config.name,
            uncond=result.uncond[:, i].cpu(),
            pivot=pivot[:, i].cpu(),
            latents=result.latents[:, i].cpu(),
            losses=result.losses[:, i].cpu(),
            placement=placement,
        )
        for i, (words, (_, placement)) in enumerate(zip(prompts, fitted, strict=True))
    ]
    return made[0] if isinstance(prompt, str) else made


def _pairs(
    image: ImageLike | Sequence[ImageLike], prompt: str | Sequence[str]
) -> tuple[Sequence[ImageLike], Sequence[str]]:
    """Return images and prompts as lists of one length."""
    several = isinstance(image, Sequence) and not isinstance(image, str)
    if several == isinstance(prompt, str):
        got = "a list of images and one prompt" if several else "one image and a list of prompts"
        raise ValueError(f"invert: got {got}, expected one of each or a list of each")
    if isinstance(prompt, str):
        return [cast(ImageLike, image)], [prompt]
    images = cast(Sequence[ImageLike], image)
    if not images or len(images) != len(prompt):
        raise ValueError(
            f"invert: got {len(images)} images and {len(prompt)} prompts, expected as many of each,"
            f" one at least"
        )
    return images, prompt


def _stacked(pixels: list[Tensor]) -> Tensor:
    """Return (B, 3, H, W) of images (1, 3, H, W)."""
    sizes = sorted({f"{x.shape[-1]}x{x.shape[-2]}" for x in pixels})
    if len(sizes) > 1:
        raise ValueError(
            f"invert: got images of {', '.join(sizes)} pixels, expected one size:"
            f" give it as `size`, or invert them one by one"
        )
    return torch.cat(pixels)


def _fitted(
    model: StableDiffusion, image: ImageLike, size: Size | None, fit: str
) -> tuple[Tensor, Placement | None]:
    """Return the image at a size that the model takes, and where in the original it lies."""
    config = model.config
    if isinstance(image, Tensor):
        if size is not None:
            raise ValueError(f"size: got {size!r} for a tensor, expected none: it is taken as is")
        return load_image(image, config.image_size), None
    upright = open_image(image)
    size = config.image_size if size is None else size
    wanted = upright.size if size == "native" else size
    if isinstance(wanted, str) or (not isinstance(wanted, int) and len(wanted) != 2):
        raise ValueError(f"size: got {size!r}, expected pixels, (width, height) or 'native'")
    width, height = (wanted, wanted) if isinstance(wanted, int) else wanted
    multiple = config.granularity
    nearest = tuple(max(1, round(side / multiple)) * multiple for side in (width, height))
    if size != "native" and (width, height) != nearest:
        raise ValueError(
            f"size: got {width}x{height}, expected multiples of {multiple}, which {config.name}"
            f" needs; the nearest are {nearest[0]}x{nearest[1]}"
        )
    placement = Placement.create(upright.size, (nearest[0], nearest[1]), fit)
    return fit_image(upright, placement), placement
