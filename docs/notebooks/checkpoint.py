# %% [markdown]
# # Bring your own checkpoint
#
# A checkpoint is one `.safetensors` file in the original Stable Diffusion v1 layout, or a directory
# in diffusers' layout. Here it is the embedded model's own file. Put the path of yours there.

# %%
from importlib import resources
from pathlib import Path

import torch

import nti
from nti.inspection import describe_file

path = Path(str(resources.files("nti.weights_loader") / "shapes.safetensors"))
path.name

# %% [markdown]
# **What it holds**, without loading it. `nti inspect PATH` prints the same.

# %%
print(describe_file(path))

# %% [markdown]
# **Loading** finds out the layout, and is strict: each key is mapped or named as ignored, and each
# parameter is filled.

# %%
model = nti.load_model(path, device="cpu")
print(model.config.name, model.config.image_size, model.device, model.dtype)
print(
    {
        name: sum(p.numel() for p in getattr(model, name).parameters())
        for name in ("unet", "vae", "text")
    }
)

# %% [markdown]
# **What cannot be loaded** is said, with what is wrong.

# %%
from safetensors.torch import save_file

broken = Path("broken.safetensors")
save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(320, 4, 3, 3)}, broken)
try:
    nti.load_model(broken, device="cpu")
except nti.CheckpointError as error:
    print(str(error)[:300])
finally:
    broken.unlink()

# %% [markdown]
# **Use it.** A picture from a seed is enough to see that the weights are right. It can be edited
# like an inverted photograph.

# %%
made = nti.generate(model, "a red heart on sand", seed=3, steps=20)
edited = nti.edit(model, made, "a blue heart on sand")
from nti.contact_sheet import contact_sheet

contact_sheet([[(edited.source, "generated"), (edited.images[0], "edited")]])
