"""Guided DDIM sampling with one null embedding a timestep, and the reconstruction that it gives."""

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from nti.image import to_pil
from nti.inversion.record import Inversion
from nti.model import StableDiffusion
from nti.sampling.schedule import Schedule

__all__ = ["check_model", "reconstruct", "sample"]


@torch.no_grad()
def sample(
    model: StableDiffusion,
    latent: Tensor,
    cond: Tensor,
    uncond: Tensor,
    schedule: Schedule,
    guidance_scale: float,
    *,
    progress: bool = False,
) -> Tensor:
    """z_T -> z_0 by guided DDIM steps.

    Args:
        model: the model.
        latent: z_T (B, 4, h, w).
        cond: the prompts' token states (B, 77, C).
        uncond: the null embedding of each timestep (T, B, 77, C).
        schedule: T timesteps.
        guidance_scale: w.
        progress: show a bar.

    Returns:
        The latents visited, z_T .. z_0: (T + 1, B, 4, h, w).

    """
    visited = [latent]
    for i in tqdm(range(schedule.steps), "sampling", disable=not progress):
        step = schedule.coefficients(i)
        visited.append(
            model.guided_step(
                visited[-1], schedule.timesteps[i], uncond[i], cond, step, guidance_scale
            )
        )
    return torch.stack(visited)


def check_model(model: StableDiffusion, inversion: Inversion) -> None:
    """Raise ValueError where an inversion was made with another model than this one."""
    width = model.config.text.width
    if inversion.model_name != model.config.name or inversion.uncond.shape[-1] != width:
        raise ValueError(
            f"inversion: got one made with {inversion.model_name} (embeddings of width"
            f" {inversion.uncond.shape[-1]}), expected {model.config.name} (width {width}):"
            f" load that model, or invert the image again with this one"
        )


def reconstruct(
    model: StableDiffusion, inversion: Inversion, *, progress: bool = False
) -> Image.Image:
    """Sample again from z_T with the saved embeddings, prompt and guidance, and decode.

    The latents that the record keeps are not read (but z_T), so this tests the embeddings.
    Raises ValueError for an inversion made with another model.
    """
    check_model(model, inversion)
    latents = sample(
        model,
        inversion.pivot[:1].to(model.device, model.state_dtype),
        model.encode_text([inversion.prompt]),
        inversion.uncond[:, None].to(model.device, model.state_dtype),
        model.schedule(inversion.steps),
        inversion.guidance_scale,
        progress=progress,
    )
    return to_pil(model.decode_latent(latents[-1]))[0]
