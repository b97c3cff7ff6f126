"""`inpaint`: repaint part of an image with Stable Diffusion's inpainting model.

Its UNet (Rombach et al. 2022, arXiv 2112.10752, section 4.5, in the form of the published v1 model)
takes 9 channels: z_t (4), the mask (1), and the latent of the image whose hole is grey (4). It was
trained to repaint the hole and to leave the rest, so nothing is blended while it samples.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nti.arguments import a_callable, a_number, a_text, a_whole_number, an_instance, texts
from nti.editing.result import EditedLatents, EditResult, drawn
from nti.errors import Callback, check_finite, report
from nti.image import ImageLike, MaskLike, load_mask
from nti.inversion.noised import draw
from nti.inversion.source import Size, fitted_image
from nti.model import StableDiffusion
from nti.sampling.schedule import ddim_step, noised
from nti.sampling.step import guided_noise

__all__ = ["inpaint", "inpaint_latents"]


def inpaint(
    model: StableDiffusion,
    image: ImageLike,
    mask: MaskLike,
    prompts: str | Sequence[str],
    *,
    size: Size | None = None,
    fit: str = "crop",
    steps: int = 50,
    guidance_scale: float | None = None,
    negative_prompt: str = "",
    strength: float = 1.0,
    seed: int = 0,
    keep_outside: bool = False,
    callback: Callback | None = None,
) -> EditResult:
    """Repaint an image where its mask is white.

    Args:
        model: an inpainting model, see `nti.load_model`.
        image: a path, a file's bytes, a PIL image, a NumPy array, or a tensor (3, H, W) or
            (1, 3, H, W) in [-1, 1].
        mask: white where the image is repainted, of the image's own size; see
            `nti.image.load_mask`.
        prompts: E descriptions of the whole repainted image, or one.
        size: in pixels, see `nti.invert`.
        fit: see there. The mask goes with the image.
        steps: see `inpaint_latents`, as for those that follow up to `seed`.
        guidance_scale: see there.
        negative_prompt: see there.
        strength: see there.
        seed: see there.
        keep_outside: whether pixels outside the mask are the image's own in the end. Else they are
            decoded latents, which differ a little: there is no seam then, but no exactness either.
        callback: called with (steps done, steps in all); see `nti.errors.Callback`.

    Returns:
        The result. Its `source` is the image through the autoencoder.

    Raises:
        ValueError: a model that is not for inpainting, an image or mask that cannot be used, or
        settings that do not fit.
        NotFiniteError: latents that overflow.
        Stopped: by the callback.

    """
    _check_inpaints(model)
    pixels, placement = fitted_image(model, image, size, fit)
    hole = load_mask(mask, (pixels.shape[-1], pixels.shape[-2]), placement)
    edited = inpaint_latents(
        model, pixels, hole, prompts, steps=steps, guidance_scale=guidance_scale,
        negative_prompt=negative_prompt, strength=strength, seed=seed, callback=callback,
    )  # fmt: skip
    decoded = model.decode_latent(torch.cat([edited.source, edited.latents[-1]]))
    if keep_outside:
        own, where = pixels.to(decoded), hole.to(decoded.device)
        decoded = torch.cat([decoded[:1], torch.where(where, decoded[1:], own)])
    return drawn(edited, decoded)


@torch.no_grad()
def inpaint_latents(
    model: StableDiffusion,
    pixels: Tensor,
    hole: Tensor,
    prompts: str | Sequence[str],
    *,
    steps: int = 50,
    guidance_scale: float | None = None,
    negative_prompt: str = "",
    strength: float = 1.0,
    seed: int = 0,
    callback: Callback | None = None,
) -> EditedLatents:
    """Repaint the hole of an image: the part of `inpaint` between its files and its pictures.

    Args:
        model: an inpainting model.
        pixels: the image (1, 3, H, W) in [-1, 1], of sides that the model takes.
        hole: (1, 1, H, W) bool, True where the image is repainted. A position of the latent is
            repainted where the pixel at its top left is.
        prompts: E descriptions, or one.
        steps: T timesteps.
        guidance_scale: w; None: the model's own.
        negative_prompt: its embedding takes the place of psi("").
        strength: share of the timesteps that are sampled, int(steps * strength) of them. At 1
            sampling starts from noise alone, below from the image under noise.
        seed: of the noise, which all prompts share. It is drawn on the CPU.
        callback: called with (steps done, steps in all); see `nti.errors.Callback`.

    Returns:
        The latents; `masks` has the hole at every step.

    Raises:
        ValueError: a model that is not for inpainting, a hole without any position of the latent,
        or settings that do not fit.
        NotFiniteError: latents that overflow.
        Stopped: by the callback.

    """
    _check_inpaints(model)
    prompts, negative_prompt = texts("prompts", prompts), a_text("negative_prompt", negative_prompt)
    if not prompts:
        raise ValueError("prompts: got none, expected one description or more")
    schedule = model.schedule(a_whole_number("steps", steps, 1))
    start = schedule.first_step(strength, fewest=1)
    own = model.config.guidance_scale
    w = a_number("guidance_scale", own if guidance_scale is None else guidance_scale)
    generator = torch.Generator().manual_seed(a_whole_number("seed", seed, 0, 2**63 - 1))
    a_callable("callback", callback)

    z_0 = model.encode_image(pixels)
    additional = _additional(model, pixels, hole, z_0)
    (noise,) = draw(generator, 1, z_0)
    latent = noise if start == 0 else noised(z_0, noise, schedule.alpha_bar[start])
    latents = [latent.expand(len(prompts), -1, -1, -1)]
    uncond = model.encode_text([negative_prompt]).expand(len(prompts), -1, -1)
    context = torch.cat([uncond, model.encode_text(prompts)])
    beside = additional.expand(len(context), -1, -1, -1)
    for i in range(start, schedule.steps):
        both = torch.cat([torch.cat([latents[-1], latents[-1]]), beside], dim=1)
        eps = model.steps.noise(both, schedule.timestep(i, both), context)
        eps_uncond, eps_cond = eps.chunk(2)
        guided = guided_noise(eps_uncond, eps_cond, w)
        latents.append(ddim_step(latents[-1], guided, schedule.coefficients(i)))
        check_finite(latents[-1], f"inpainting at timestep {schedule.timesteps[i]}", model.dtype)
        report(callback, i + 1 - start, schedule.steps - start)
    mask = additional[:, 0].bool().expand(schedule.steps - start, len(prompts), -1, -1)
    return EditedLatents(torch.stack(latents), z_0, mask)


def _check_inpaints(model: StableDiffusion) -> None:
    config = an_instance("model", model, StableDiffusion).config
    if not config.inpaints:
        raise ValueError(
            f"model: got {config.name}, whose UNet takes {config.unet.input_channels} channels,"
            f" expected {2 * config.unet.latent_channels + 1} (z_t, mask, masked image): load"
            " a Stable Diffusion v1 inpainting checkpoint, or edit by `nti.edit`, which needs none"
        )


def _additional(model: StableDiffusion, pixels: Tensor, hole: Tensor, z_0: Tensor) -> Tensor:
    """Return the channels after z_t: the mask, 1 where it repaints, and the masked image's latent.

    (1, 5, h, w); the same for the conditional and the unconditional rows.
    """
    masked = torch.where(hole.to(pixels.device), 0.0, pixels)  # grey
    mask = F.interpolate(hole.to(z_0), size=z_0.shape[-2:])  # nearest
    if not mask.any():
        raise ValueError(
            f"mask: got one without white in any of the {mask.shape[-2]} x {mask.shape[-1]}"
            " positions of the latent, expected some to repaint: draw it larger, or invert it"
        )
    return torch.cat([mask, model.encode_image(masked)], dim=1)
