"""Null-text inversions as the authors' notebook and diffusers' community pipeline keep them.

Both give z_T (1, 4, h, w) and a list of T null embeddings (1, 77, C), and sample with the same
timesteps as here.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from nti.errors import Callback
from nti.files import write_file
from nti.inversion.inversion import Inversion, InversionFileError
from nti.inversion.provenance import Provenance, describe_versions
from nti.inversion.sampling import sample
from nti.model import StableDiffusion
from nti.weights_loader.metadata import printable

__all__ = ["from_published", "read_published", "to_published", "write_published"]

NAMES = ("x_t", "uncond_embeddings")


def to_published(inversion: Inversion) -> tuple[Tensor, Tensor]:
    """Return z_T (1, 4, h, w) and the null embeddings (T, 1, 77, C).

    Give them to diffusers' `NullTextPipeline` as `pipeline(prompt, list(embeddings), z_t,
    inversion.guidance_scale, inversion.steps)`.

    Raises ValueError for an inversion by a method that keeps more than that.
    """
    kept = inversion.cond is not None or inversion.offsets is not None or inversion.row.replayed
    if kept or inversion.row.eta:
        raise ValueError(
            f"inversion: got one by {inversion.method}, whose source is not what z_T and null"
            " embeddings sample, expected one by null-text, negative-prompt or ddim, say: other"
            " programs have no place for the rest"
        )
    return inversion.pivot[:1].clone(), inversion.uncond[:, None].clone()


def from_published(
    model: StableDiffusion,
    x_t: Tensor,
    uncond_embeddings: Tensor | Sequence[Tensor],
    prompt: str,
    *,
    guidance_scale: float | None = None,
    callback: Callback | None = None,
) -> Inversion:
    """Make an inversion of what other programs keep, by sampling from it once.

    Args:
        model: of the weights that it was made with.
        x_t: z_T (1, 4, h, w).
        uncond_embeddings: T of (1, 77, C), a list or one tensor.
        prompt: the source prompt.
        guidance_scale: w that it was made for; None: the model's own.
        callback: see `nti.errors.Callback`.

    Returns:
        An inversion that is edited like any other. Its pivot is not known: it has the latents that
        sampling visits instead.

    Raises:
        ValueError: tensors of other shapes, or values that are not finite.
        NotFiniteError: latents that overflow.
        Stopped: by the callback.

    """
    model.check_takes_latents_alone("sample from z_T")
    uncond = _stacked(uncond_embeddings)
    tokens, width = model.config.text.context_length, model.config.text.width
    channels = model.config.unet.latent_channels
    if uncond.ndim != 4 or uncond.shape[1:] != (1, tokens, width):
        raise ValueError(
            f"uncond_embeddings: got {tuple(uncond.shape)}, expected (T, 1, {tokens}, {width})"
        )
    if x_t.ndim != 4 or x_t.shape[:2] != (1, channels):
        raise ValueError(f"x_t: got {tuple(x_t.shape)}, expected (1, {channels}, h, w)")
    for name, values in zip(NAMES, (x_t, uncond), strict=True):
        if not values.is_floating_point() or not values.isfinite().all():
            raise ValueError(f"{name}: got {values.dtype}, expected finite floating point")
    w = model.config.guidance_scale if guidance_scale is None else guidance_scale
    uncond = uncond.to(model.device, model.state_dtype)
    visited = sample(
        model.steps,
        x_t.to(model.device, model.state_dtype),
        model.encode_text([prompt]),
        uncond,
        model.schedule(len(uncond)),
        w,
        callback=callback,
    )[:, 0].cpu()
    return Inversion(
        prompt=prompt,
        method="null-text",
        guidance_scale=w,
        model_name=model.config.name,
        uncond=uncond[:, 0].cpu(),
        pivot=visited.clone(),
        latents=visited,
        losses=torch.zeros(len(uncond), 0, dtype=visited.dtype),
        made=Provenance(
            None, {"converted_from": "x_t, uncond_embeddings"}, describe_versions(model)
        ),
        weights=model.fingerprint,
    )


def write_published(inversion: Inversion, path: str | Path) -> None:
    """Write `x_t` and `uncond_embeddings` to a safetensors file; OSError where that fails."""
    tensors = dict(zip(NAMES, to_published(inversion), strict=True))
    write_file(path, save({name: each.contiguous() for name, each in tensors.items()}))


def read_published(path: str | Path) -> tuple[Tensor, Tensor]:
    """Read such a file. Raises InversionFileError for a file that is none."""
    try:
        tensors = load_file(path)
        return tensors[NAMES[0]], tensors[NAMES[1]]
    except (SafetensorError, OSError, KeyError) as error:
        raise InversionFileError(
            f"{path}: got no safetensors file with {' and '.join(NAMES)}"
            f" ({printable(str(error))}): save them by"
            " save_file({'x_t': x_t, 'uncond_embeddings': torch.stack(uncond_embeddings)}, path)"
        ) from error


def _stacked(embeddings: Tensor | Sequence[Tensor]) -> Tensor:
    if isinstance(embeddings, Tensor):
        return embeddings
    shapes = {tuple(each.shape) for each in embeddings}
    if len(shapes) != 1:
        raise ValueError(f"uncond_embeddings: got shapes {sorted(shapes)}, expected one")
    return torch.stack(list(embeddings))
