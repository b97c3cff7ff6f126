# %% [markdown]
# # Null-text inversion by hand
#
# The algorithm in a few cells, on the small model that comes with the package. Ten timesteps and
# five iterations at each are enough to see it work.

# %%
import torch

import nti
from nti.contact_sheet import contact_sheet
from nti.demo import psnr, sample_captions, sample_image

model = nti.load_model(device="cpu")
caption = sample_captions()["purple-circle"]
photograph = nti.load_image(sample_image("purple-circle"), model.config.image_size)
schedule, w = model.schedule(10), 7.5
caption

# %% [markdown]
# The photograph becomes a latent, the prompts become states of 77 tokens.

# %%
z_0 = model.encode_image(photograph)
cond, null = model.encode_text([caption]), model.encode_text([""])
z_0.shape, cond.shape

# %% [markdown]
# **The pivot.** DDIM inversion at guidance 1 leads the latent to noise. Index 0 is z_T.

# %%
pivot = nti.ddim_invert(model.steps, z_0, cond, schedule)
[round(float(z.square().mean().sqrt()), 2) for z in pivot]

# %% [markdown]
# **Sampling.** A guided step mixes the noise predicted with both prompts, and moves the latent.


# %%
def guided_step(i, z, uncond):
    t = schedule.timestep(i, z)
    eps_uncond, eps_cond = model.steps.noise(z, t, uncond), model.steps.noise(z, t, cond)
    eps = eps_uncond + w * (eps_cond - eps_uncond)
    step = schedule.coefficients(i).to(z)
    return step.latent * z + step.eps * eps


def sample(embeddings):
    z = pivot[0]
    with torch.no_grad():
        for i, uncond in enumerate(embeddings):
            z = guided_step(i, z, uncond)
    return z


plain = sample([null] * schedule.steps)

# %% [markdown]
# **Algorithm 1.** One null embedding a timestep learns to arrive where the pivot is.

# %%
z, uncond, learned, losses = pivot[0], null, [], []
for i in range(schedule.steps):
    uncond = uncond.detach().clone().requires_grad_()
    adam = torch.optim.Adam([uncond], lr=1e-2 * (1 - i / (2 * schedule.steps)))
    for _ in range(5):
        loss = (guided_step(i, z, uncond) - pivot[i + 1]).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    with torch.no_grad():
        z = guided_step(i, z, uncond)
    learned.append(uncond.detach())
    losses.append(loss.item())
[f"{loss:.1e}" for loss in losses]

# %% [markdown]
# **What it brings.** Both samplings begin at the same noise and use the same guidance.

# %%
names = ["autoencoder", "psi('')", "optimized"]
pictures = [model.decode_latent(z) for z in (pivot[-1], plain, sample(learned))]
cells = [(nti.to_pil(photograph)[0], "the photograph")] + [
    (nti.to_pil(picture)[0], f"{name}, {psnr(picture, photograph):.1f} dB")
    for name, picture in zip(names, pictures, strict=True)
]
contact_sheet([cells], title=f"w = {w}")

# %% [markdown]
# `nti.invert` does the same for many images at once, stops early, and keeps the result in a file.
