# %% [markdown]
# # Attention and the fold
#
# Prompt-to-Prompt edits an image through its cross-attention. This notebook looks at the attention,
# writes an edit as two small matrices, and checks that the fold computes the same without any map.

# %%
import torch
from nti.kernels.cfg_attention import Fold, cfg_attention, materialised

import nti
from nti.contact_sheet import contact_sheet
from nti.demo import sample_captions, sample_image

model = nti.load_model(device="cpu")
caption = sample_captions()["purple-circle"]
inversion = nti.invert(model, sample_image("purple-circle"), caption, steps=10)
caption

# %% [markdown]
# **Where each word looks**, averaged over steps, heads and sites.

# %%
from nti.editing.attention_grid import attention_grid

attention_grid(model, inversion, by_word=True)

# %% [markdown]
# **An edit as matrices.** `A` says how much of a source token's attention each of the edit's tokens
# receives, `b` how much it keeps of its own. A word that is new has a column of zeros, and b = 1.

# %%
plan = nti.EditPlan.create(
    model.tokenizer, caption, "a striped purple circle on snow", steps=inversion.steps
)
first, last = plan.controls.control(0, 3, None).fold, plan.controls.control(9, 3, None).fold
print(plan.alignments[0].mode)
print(first.source_mix[0, :8, :8].int())
print(first.own_mix[0, :8].int(), "while the window is open")
print(last.own_mix[0, :8].int(), "after it")

# %% [markdown]
# **The fold.** With the map in memory it is P' V. Without, it is two attentions whose values are
# multiplied before.

# %%
q, k, v = (torch.randn(2, 4, n, 16, dtype=torch.float64) for n in (64, 77, 77))
fold = Fold(torch.tensor([0]), first.source_mix, first.own_mix)
with_map = materialised(q, k, fold) @ v
without, _ = cfg_attention(q, k, v, fold)
float((with_map - without).abs().max())

# %% [markdown]
# **The windows.** The longer the source's cross-attention stays, the more of its layout stays.

# %%
shares = [0.0, 0.3, 0.6, 1.0]
result = nti.edit(
    model, inversion, ["a purple heart on snow"] * len(shares), cross_replace=shares,
    self_replace=0.2,
)  # fmt: skip
cells = [(image, f"cross {share:g}") for image, share in zip(result.images, shares, strict=True)]
contact_sheet([[(result.source, "source"), *cells]])
