"""A picture from a seed, as an inversion without an image: it is edited like any other."""

import torch

from nti.arguments import a_number, a_text, a_whole_number
from nti.errors import Callback
from nti.inversion.inversion import Inversion
from nti.inversion.methods import GENERATED
from nti.inversion.provenance import Provenance, describe_versions
from nti.inversion.sampling import sample
from nti.inversion.source import width_and_height
from nti.model import StableDiffusion

__all__ = ["generate"]


@torch.no_grad()
def generate(
    model: StableDiffusion,
    prompt: str,
    *,
    seed: int = 0,
    steps: int = 50,
    guidance_scale: float | None = None,
    negative_prompt: str = "",
    size: int | tuple[int, int] | None = None,
    callback: Callback | None = None,
) -> Inversion:
    """Sample a picture from noise, and keep what an edit needs of it.

    Args:
        model: the model.
        prompt: what it shall show.
        seed: of z_T, which is drawn on the CPU and so the same on every device.
        steps: T timesteps.
        guidance_scale: w; None: the model's own.
        negative_prompt: its embedding takes the place of psi("").
        size: pixels, side of a square or (width, height), in multiples that the model takes; None:
            the square that it was trained at.
        callback: see `nti.errors.Callback`.

    Returns:
        An inversion of method `generated`, its tensors on the CPU; `nti.reconstruct` decodes it.

    Raises:
        ValueError: a number that cannot be, or a model for inpainting.
        NotFiniteError: latents that overflow.
        Stopped: by the callback.

    """
    config = model.config
    model.check_takes_latents_alone("generate")
    prompt, negative_prompt = a_text("prompt", prompt), a_text("negative_prompt", negative_prompt)
    seed = a_whole_number("seed", seed, 0, 2**63 - 1)
    steps = a_whole_number("steps", steps, 1)
    w = a_number(
        "guidance_scale", config.guidance_scale if guidance_scale is None else guidance_scale
    )
    width, height = width_and_height(config.image_size if size is None else size)
    multiple = config.granularity
    if width % multiple or height % multiple:
        raise ValueError(f"size: got {width}x{height}, expected multiples of {multiple} pixels")
    schedule = model.schedule(steps)
    shape = (1, config.unet.latent_channels) + tuple(
        each // config.vae.downsampling for each in (height, width)
    )
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    cond, uncond = model.encode_text([prompt]), model.encode_text([negative_prompt])
    latents = sample(
        model.steps,
        noise.to(model.device, model.state_dtype),
        cond,
        uncond.expand(steps, 1, -1, -1),
        schedule,
        w,
        callback=callback,
    )
    visited = latents[:, 0].cpu()
    settings = {
        "method": GENERATED,
        "steps": steps,
        "guidance_scale": float(w),
        "seed": seed,
        "negative_prompt": negative_prompt,
    }
    return Inversion(
        prompt=prompt,
        method=GENERATED,
        guidance_scale=w,
        model_name=config.name,
        uncond=uncond.expand(steps, -1, -1).contiguous().cpu(),
        pivot=visited.clone(),  # a file holds each tensor by itself
        latents=visited,
        losses=torch.zeros(steps, 0, dtype=visited.dtype),
        made=Provenance(None, settings, describe_versions(model)),
        weights=model.fingerprint,
    )
