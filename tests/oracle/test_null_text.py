"""The whole inversion against a plain loop over diffusers' UNet and DDIM scheduler."""

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor

import nti
from oracle_unet import converted_unet
from tiny import SD_LIKE, make_model
from tolerances import RELATIVE_OPTIMIZED, assert_close, note_error, relative_error

T, N, W = 10, 10, 7.5


def ddim_scheduler() -> DDIMScheduler:
    """The published settings, its table in float64."""
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    scheduler.alphas_cumprod = torch.cumprod(1 - betas, dim=0)
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(T)
    return scheduler


def pivot_of(unet: UNet2DConditionModel, scheduler: DDIMScheduler, z: Tensor, c: Tensor) -> Tensor:
    """DDIM's step solved for the noisier latent, at guidance 1, z_T first."""
    visited, stride = [z], 1000 // T
    for t in reversed(scheduler.timesteps.tolist()):
        before = scheduler.alphas_cumprod[t - stride] if t > stride else scheduler.alphas_cumprod[0]
        after = scheduler.alphas_cumprod[t]
        eps = unet(z, t, c).sample
        z_0 = (z - (1 - before).sqrt() * eps) / before.sqrt()
        z = after.sqrt() * z_0 + (1 - after).sqrt() * eps
        visited.append(z)
    return torch.stack(visited[::-1])


def optimize(
    unet: UNet2DConditionModel, scheduler: DDIMScheduler, pivot: Tensor, c: Tensor, null: Tensor
) -> Tensor:
    """Algorithm 1 as it is published, on torch's Adam: (T, 77, C)."""
    z, found = pivot[0], []
    for i, t in enumerate(scheduler.timesteps.tolist()):
        null = null.detach().clone().requires_grad_()
        adam = torch.optim.Adam([null], lr=1e-2 * (1 - i / (2 * T)))
        with torch.no_grad():
            eps_c = unet(z, t, c).sample
        for _ in range(N):
            eps_u = unet(z, t, null).sample
            stepped = scheduler.step(eps_u + W * (eps_c - eps_u), t, z).prev_sample
            loss = F.mse_loss(stepped, pivot[i + 1])
            adam.zero_grad()
            loss.backward()
            adam.step()
            if loss.item() < 1e-5 + 2e-5 * 50 * i / T:
                break
        found.append(null.detach()[0])
        with torch.no_grad():
            eps_u = unet(z, t, null).sample
            z = scheduler.step(eps_u + W * (eps_c - eps_u), t, z).prev_sample
    return torch.stack(found)


def test_inversion_agrees_embedding_by_embedding() -> None:
    model = make_model(SD_LIKE)
    g = torch.Generator().manual_seed(1)
    image = torch.rand(1, 3, 64, 64, generator=g, dtype=torch.float64) * 2 - 1
    prompt = "a cat sitting next to a mirror"
    ours = nti.invert(model, image, prompt, steps=T, guidance_scale=W, inner_steps=N)

    unet, scheduler = converted_unet(model), ddim_scheduler()
    c, null = model.encode_text([prompt]), model.encode_text([""])
    with torch.no_grad():
        pivot = pivot_of(unet, scheduler, model.encode_image(image), c)
    assert_close(ours.pivot, pivot[:, 0])
    theirs = optimize(unet, scheduler, pivot, c, null)
    assert relative_error(theirs[-1], null[0]) > 1e-2
    for i in range(T):
        error = relative_error(ours.uncond[i], theirs[i])
        note_error(error, torch.float64)
        assert error < RELATIVE_OPTIMIZED, f"embedding {i}: relative error {error:.2e}"
