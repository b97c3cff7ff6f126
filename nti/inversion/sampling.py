"""Guided DDIM sampling with one null embedding a timestep, and the reconstruction that it gives."""

import warnings

import torch
from PIL import Image
from torch import Tensor

from nti.errors import Callback, check_finite, report
from nti.execution.steps import Steps
from nti.image import to_pil
from nti.inversion.inversion import Inversion
from nti.model import StableDiffusion
from nti.sampling.schedule import Schedule

__all__ = ["check_model", "reconstruct", "reconstruct_latents", "sample"]


@torch.no_grad()
def sample(
    steps: Steps,
    latent: Tensor,
    cond: Tensor,
    uncond: Tensor,
    schedule: Schedule,
    guidance_scale: float,
    *,
    offsets: Tensor | None = None,
    spare_rows: bool = False,
    callback: Callback | None = None,
) -> Tensor:
    """z_T -> z_0 by guided steps.

    Args:
        steps: the model's steps.
        latent: z_T (B, 4, h, w).
        cond: the prompts' token states (B, 77, C), or (T, B, 77, C), those of each timestep.
        uncond: the null embedding of each timestep (T, B, 77, C).
        schedule: T timesteps.
        guidance_scale: w.
        offsets: what is added to each step (T, B, 4, h, w); None: nothing.
        spare_rows: whether it is an error only if all images overflow.
        callback: see `nti.errors.Callback`.

    Returns:
        The latents visited, z_T .. z_0: (T + 1, B, 4, h, w).

    Raises:
        NotFiniteError: latents that overflow.
        Stopped: by the callback.

    """
    w = latent.new_full((), guidance_scale)
    visited = [latent]
    for i in range(schedule.steps):
        step = schedule.coefficients(i).to(latent)
        timestep = schedule.timestep(i, latent)
        prompts = cond if cond.ndim == 3 else cond[i]
        reached = steps.guided_step(visited[-1], timestep, uncond[i], prompts, step, w)
        visited.append(reached if offsets is None else reached + offsets[i])
        where = f"sampling at timestep {schedule.timesteps[i]}"
        dtype = steps.unet.conv_in.weight.dtype
        check_finite(visited[-1], where, dtype, spare_rows=spare_rows)
        report(callback, i + 1, schedule.steps)
    return torch.stack(visited)


def check_model(model: StableDiffusion, inversion: Inversion) -> None:
    """Raise ValueError where an inversion was made with another model than this one.

    Warns where only the autoencoder is another one. An inversion that does not say what weights it
    was made with is known by its model's name alone.
    """
    model.check_takes_latents_alone("edit or reconstruct")
    width = model.config.text.width
    if inversion.model_name != model.config.name or inversion.uncond.shape[-1] != width:
        raise ValueError(
            f"inversion: got one made with {inversion.model_name} (embeddings of width"
            f" {inversion.uncond.shape[-1]}), expected {model.config.name} (width {width}):"
            f" load that model, or invert the image again with this one"
        )
    tokens, channels = model.config.text.context_length, model.config.unet.latent_channels
    if inversion.uncond.shape[1] != tokens or inversion.latents.shape[1] != channels:
        raise ValueError(
            f"inversion: got embeddings of {inversion.uncond.shape[1]} tokens and latents of"
            f" {inversion.latents.shape[1]} channels, expected {tokens} and {channels}, as"
            f" {model.config.name} has: invert the image again with this model"
        )
    if inversion.weights is None:
        return
    differing = inversion.weights.differing(model.fingerprint)
    if "unet" in differing or "text" in differing:
        words = {"unet": "UNet", "text": "text encoder", "vae": "autoencoder"}
        names = " and ".join(words[network] for network in differing)
        raise ValueError(
            f"inversion: got one made with another {names} (other weights, or numbers such as the"
            f" schedule), expected that of this {model.config.name}: load the checkpoint as it was"
            f" then, or invert the image again with this one"
        )
    if differing:
        warnings.warn(
            "inversion: the model has another autoencoder (its weights or its scale) than the"
            " inversion was made with, so the picture will differ from the photograph: give the"
            " same --vae, or invert again",
            stacklevel=3,
        )


def reconstruct_latents(
    model: StableDiffusion, inversion: Inversion, *, callback: Callback | None = None
) -> Tensor:
    """Sample again from z_T with the saved embeddings, prompt and guidance.

    The latents that the inversion keeps are not read (but z_T), so this tests the embeddings. Only
    where the method's latents are kept ones (`Method.replayed`) does it return those.

    Returns:
        The latents visited, z_T .. z_0: (T + 1, 1, 4, h, w), on the model's device.

    Raises:
        ValueError: an inversion made with another model.
        NotFiniteError: latents that overflow.
        Stopped: by the callback.

    """
    check_model(model, inversion)

    def batch_of_one(values: Tensor) -> Tensor:
        return values[:, None].to(model.device, model.state_dtype)

    if inversion.row.replayed:
        return batch_of_one(inversion.latents)
    learned, offsets = inversion.cond, inversion.offsets
    return sample(
        model.steps,
        batch_of_one(inversion.pivot)[0],
        model.encode_text([inversion.prompt]) if learned is None else batch_of_one(learned),
        batch_of_one(inversion.uncond),
        model.schedule(inversion.steps, eta=inversion.row.eta),
        inversion.guidance_scale,
        offsets=None if offsets is None else batch_of_one(offsets),
        callback=callback,
    )


def reconstruct(
    model: StableDiffusion, inversion: Inversion, *, callback: Callback | None = None
) -> Image.Image:
    """Decode what `reconstruct_latents` samples; raises what it raises."""
    latents = reconstruct_latents(model, inversion, callback=callback)
    return to_pil(model.decode_latent(latents[-1]))[0]
