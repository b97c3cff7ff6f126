"""`invert`: an image and its caption to an `Inversion`; the same for many, and from a latent."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nti.errors import Callback, check_finite, report
from nti.image import ImageLike, Placement, fit_image, load_image, open_image
from nti.inversion.ddim import check_noise_at, ddim_invert
from nti.inversion.inversion import METHODS, Inversion
from nti.inversion.null_text import (
    NullTextResult,
    Rule,
    optimize_null_text,
    published_learning_rate,
    published_threshold,
)
from nti.model import StableDiffusion

__all__ = [
    "InversionSettings",
    "InvertedLatents",
    "Size",
    "invert",
    "invert_batch",
    "invert_latent",
]

Size = int | tuple[int, int] | Literal["native"]
"""The side of a square, (width, height), or the image's own size, each side rounded to the model's
granularity."""


@dataclass(frozen=True)
class InversionSettings:
    """How an image is inverted. ValueError for a number or a name that cannot be."""

    steps: int = 50
    """T timesteps."""
    guidance_scale: float | None = None
    """w; None: the model's own (7.5 for SD v1)."""
    inner_steps: int = 10
    """N, at most this many iterations a timestep."""
    method: str = "null-text"
    """`null-text`; or, without optimization, `negative-prompt` (the prompt's own embedding stands
    for the null embedding, arXiv 2305.16807) or `ddim` (psi("") at every timestep)."""
    noise_at: str = "target"
    """See `nti.inversion.ddim.ddim_invert`."""
    learning_rate: Rule = published_learning_rate
    """Of the inner iterations, a function of (index, steps)."""
    threshold: Rule = published_threshold
    """Of the early stop, a function of (index, steps)."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method: got {self.method!r}, expected one of {', '.join(METHODS)}")
        if self.method == "null-text" and self.inner_steps < 1:
            raise ValueError(
                f"inner_steps: got {self.inner_steps}, expected 1 or more;"
                f" for none at all choose method='ddim'"
            )
        check_noise_at(self.noise_at)
        if self.steps < 1:
            raise ValueError(f"steps: got {self.steps}, expected 1 or more")
        for name in ("learning_rate", "threshold"):
            if not callable(rule := getattr(self, name)):
                raise ValueError(
                    f"{name}: got {rule!r}, expected a function of (index, steps), such as"
                    f" lambda index, steps: {rule!r}"
                )
        if self.guidance_scale is not None and not math.isfinite(self.guidance_scale):
            raise ValueError(f"guidance_scale: got {self.guidance_scale}, expected a finite number")


@dataclass(frozen=True, eq=False)
class InvertedLatents:
    """What inverting B latents leaves, on the model's device, in sampling order."""

    pivot: Tensor
    """z*_T .. z*_0: (T + 1, B, 4, h, w)."""
    null_text: NullTextResult
    """Embeddings, visited latents and losses."""
    guidance_scale: float
    """w that they were made for."""


def invert(
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
    learning_rate: Rule = published_learning_rate,
    threshold: Rule = published_threshold,
    callback: Callback | None = None,
) -> Inversion:
    """Invert an image (null-text inversion, arXiv 2211.09794, Algorithm 1).

    Args:
        model: the model.
        image: a path, a PIL image, a NumPy array, or a tensor (3, H, W) or (1, 3, H, W) in [-1, 1].
        prompt: what the image shows.
        size: in pixels; None: the square that the model was trained at. A tensor is taken as is.
        fit: how an image of another shape is brought to it: `crop` keeps its middle, `pad` all of
            it and continues its edges, `stretch` changes its shape.
        steps: see `InversionSettings`, as for all that follow.
        guidance_scale: see there.
        inner_steps: see there.
        method: see there.
        noise_at: see there.
        learning_rate: see there.
        threshold: see there.
        callback: called with (steps done, 2 T) after each timestep of the pivot and of the
            optimization; see `nti.errors.Callback`.

    Returns:
        The inversion, its tensors on the CPU.

    Raises:
        ValueError: an image, number or method that cannot be.
        NotFiniteError: latents that overflow.
        Stopped: by the callback.

    """
    settings = InversionSettings(
        steps, guidance_scale, inner_steps, method, noise_at, learning_rate, threshold
    )
    (made,) = invert_batch(
        model, [image], [prompt], settings, size=size, fit=fit, callback=callback
    )
    return made


def invert_batch(
    model: StableDiffusion,
    images: Sequence[ImageLike],
    prompts: Sequence[str],
    settings: InversionSettings | None = None,
    *,
    size: Size | None = None,
    fit: str = "crop",
    callback: Callback | None = None,
) -> list[Inversion]:
    """Invert many images at once; what comes back is what inverting them one by one gives.

    Each image has its own embedding, optimizer and early stop.

    Args:
        model: the model.
        images: of which each may be what `invert` takes; they come to one size.
        prompts: what each shows.
        settings: of all; None: the defaults.
        size: see `invert`.
        fit: see `invert`.
        callback: see `invert`.

    Raises:
        ValueError: images and prompts of different number, or of sizes that differ; and whatever
        `invert` raises.

    """
    if isinstance(images, str) or isinstance(prompts, str) or len(images) != len(prompts):
        raise ValueError(
            f"invert_batch: got {_counted(images)} images and {_counted(prompts)} prompts, expected"
            " two lists of the same length; for one image use invert"
        )
    if not images:
        raise ValueError("invert_batch: got no image, expected one at least")
    settings = settings or InversionSettings()
    fitted = [_fitted(model, each, size, fit) for each in images]
    latent = model.encode_image(_stacked([pixels for pixels, _ in fitted]))
    made = invert_latent(model, latent, prompts, settings, callback=callback)
    found = made.null_text
    # Copies, not views: one inversion must not keep the whole batch's memory.
    return [
        Inversion(
            prompt=words,
            method=settings.method,
            guidance_scale=made.guidance_scale,
            model_name=model.config.name,
            uncond=_own(found.uncond[:, i]),
            pivot=_own(made.pivot[:, i]),
            latents=_own(found.latents[:, i]),
            losses=_own(found.losses[:, i]),
            placement=placement,
        )
        for i, (words, (_, placement)) in enumerate(zip(prompts, fitted, strict=True))
    ]


@torch.inference_mode(mode=False)  # the embedding learns, whatever mode the caller is in
def invert_latent(
    model: StableDiffusion,
    latent: Tensor,
    prompts: Sequence[str],
    settings: InversionSettings | None = None,
    *,
    callback: Callback | None = None,
) -> InvertedLatents:
    """Invert latents: the part of `invert_batch` between encoding and the `Inversion`.

    Args:
        model: the model.
        latent: z_0 (B, 4, h, w), as `model.encode_image` gives it.
        prompts: B of them.
        settings: None: the defaults.
        callback: see `invert`.

    Raises:
        ValueError: latents that are not finite or not as many as the prompts.
        NotFiniteError: latents that overflow.
        Stopped: by the callback.

    """
    settings = settings or InversionSettings()
    if latent.ndim != 4 or len(latent) != len(prompts):
        raise ValueError(
            f"latent: got {tuple(latent.shape)} for {len(prompts)} prompts, expected"
            f" ({len(prompts)}, {model.config.unet.latent_channels}, h, w)"
        )
    latent = latent.to(model.device, model.state_dtype, copy=True)
    check_finite(latent, "latent to invert", latent.dtype)
    own = model.config.guidance_scale
    w = own if settings.guidance_scale is None else settings.guidance_scale
    schedule = model.schedule(settings.steps)
    cond = model.encode_text(prompts)
    null = model.encode_text([""]).expand_as(cond).contiguous()
    total = 2 * schedule.steps
    pivot = ddim_invert(
        model.steps,
        latent,
        cond,
        schedule,
        noise_at=settings.noise_at,
        callback=lambda done, _: report(callback, done, total),
    )
    found = optimize_null_text(
        model.steps,
        pivot,
        cond,
        cond if settings.method == "negative-prompt" else null,
        schedule,
        guidance_scale=w,
        inner_steps=settings.inner_steps if settings.method == "null-text" else 0,
        learning_rate=settings.learning_rate,
        threshold=settings.threshold,
        callback=lambda done, _: report(callback, schedule.steps + done, total),
    )
    return InvertedLatents(pivot, found, w)


def _counted(values: Sequence[object] | str) -> str:
    return f"one string {values!r} of" if isinstance(values, str) else str(len(values))


def _own(values: Tensor) -> Tensor:
    """Return a copy on the CPU, on memory that holds nothing else."""
    return values.to("cpu", copy=True, memory_format=torch.contiguous_format)


def _stacked(pixels: list[Tensor]) -> Tensor:
    """Return (B, 3, H, W) of images (1, 3, H, W)."""
    sizes = sorted({f"{x.shape[-1]}x{x.shape[-2]}" for x in pixels})
    if len(sizes) > 1:
        raise ValueError(
            f"invert_batch: got images of {', '.join(sizes)} pixels, expected one size:"
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
