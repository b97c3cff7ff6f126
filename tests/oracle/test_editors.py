"""SDEdit, blended latent diffusion and MasaCtrl against plain loops over diffusers' UNet."""

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor

import nti
from nti import Inversion, StableDiffusion
from oracle_unet import converted_unet
from tiny import SD_LIKE, make_model
from tolerances import assert_close

T, W, START, SEED = 10, 7.5, 4, 2
TIGER = "a tiger sitting next to a mirror"
LABELS = range(901, 0, -100)
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
ALPHA_BAR = torch.cumprod(1 - BETAS, dim=0)


@pytest.fixture(scope="module")
def model() -> StableDiffusion:
    return make_model(SD_LIKE)


@pytest.fixture(scope="module")
def inversion(model: StableDiffusion) -> Inversion:
    """Its null embeddings are other ones at every step."""
    g = torch.Generator().manual_seed(1)
    image = torch.rand(1, 3, 64, 64, generator=g, dtype=torch.float64) * 2 - 1
    prompt = "a cat sitting next to a mirror"
    return nti.invert(model, image, prompt, steps=T, guidance_scale=W, inner_steps=1)


@pytest.fixture(scope="module")
def unet(model: StableDiffusion) -> UNet2DConditionModel:
    return converted_unet(model)


def guided_step(
    unet: UNet2DConditionModel, z: Tensor, i: int, null: Tensor, prompt: Tensor
) -> Tensor:
    e_u, e_c = (unet(z, LABELS[i], c).sample for c in (null[i : i + 1], prompt))
    return ddim_step(z, i, e_u + W * (e_c - e_u))


def ddim_step(z: Tensor, i: int, e: Tensor) -> Tensor:
    now, to = ALPHA_BAR[LABELS[i]], ALPHA_BAR[LABELS[i + 1]] if i + 1 < T else ALPHA_BAR[0]
    return to.sqrt() * (z - (1 - now).sqrt() * e) / now.sqrt() + (1 - to).sqrt() * e


@torch.no_grad()
def test_sdedit(model: StableDiffusion, inversion: Inversion, unet: UNet2DConditionModel) -> None:
    ours = nti.sdedit(model, inversion, TIGER, strength=0.6, seed=SEED)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(SEED)).double()
    a, prompt = ALPHA_BAR[LABELS[START]], model.encode_text([TIGER])
    z = a.sqrt() * inversion.pivot[-1:] + (1 - a).sqrt() * noise
    theirs = [z]
    for i in range(START, T):
        theirs.append(guided_step(unet, theirs[-1], i, inversion.uncond, prompt))
    assert_close(ours.latents, torch.stack(theirs))


@torch.no_grad()
def test_blended_latent_diffusion(
    model: StableDiffusion, inversion: Inversion, unet: UNet2DConditionModel
) -> None:
    mask = torch.zeros(64, 64)
    mask[:, 40:] = 1
    ours = nti.masked(model, inversion, TIGER, mask=mask, strength=0.6, seed=SEED)
    noises = torch.randn(T, 1, 4, 8, 8, generator=torch.Generator().manual_seed(SEED)).double()
    z_0, prompt, m = inversion.pivot[-1:], model.encode_text([TIGER]), mask[::8, ::8].double()

    def noised(i: int) -> Tensor:
        if i == T:
            return z_0
        a = ALPHA_BAR[LABELS[i]]
        return a.sqrt() * z_0 + (1 - a).sqrt() * noises[i]

    theirs = [noised(START)]
    for i in range(START, T):
        z = guided_step(unet, theirs[-1], i, inversion.uncond, prompt)
        theirs.append(m * z + (1 - m) * noised(i + 1))
    assert_close(ours.latents, torch.stack(theirs))


class SharedAttention:
    """Attention whose second and fourth row use the keys and values of the first and third."""

    def __call__(self, attn: Attention, hidden_states: Tensor, **_: object) -> Tensor:
        q, k, v = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        k, v = k[[0, 0, 2, 2]], v[[0, 0, 2, 2]]
        q, k, v = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return attn.to_out[0](out)


def place(name: str) -> tuple[int, str]:
    """Where a layer is on the way through the UNet: down, middle, up."""
    return ["down", "mid_", "up_b"].index(name[:4]), name


@torch.no_grad()
def test_masactrl(model: StableDiffusion, inversion: Inversion) -> None:
    ours = nti.masactrl(model, inversion, TIGER, steps_from=0.3)
    unet = converted_unet(model)
    before = dict(unet.attn_processors)
    own = sorted((name for name in before if ".attn1." in name), key=place)
    assert len(own) == 16
    shared = before | {name: SharedAttention() for name in own[10:]}
    prompts = model.encode_text([inversion.prompt, TIGER])
    z, theirs = inversion.latents[:1], [inversion.latents[:1]]
    for i in range(T):
        unet.set_attn_processor(dict(shared if i >= 3 else before))
        rows = torch.cat([inversion.latents[i : i + 1], z]).repeat(2, 1, 1, 1)
        null = inversion.uncond[i].expand(2, -1, -1)
        e = unet(rows, LABELS[i], torch.cat([null, prompts])).sample
        z = ddim_step(z, i, e[1:2] + W * (e[3:] - e[1:2]))
        theirs.append(z)
    assert_close(ours.latents, torch.stack(theirs))
