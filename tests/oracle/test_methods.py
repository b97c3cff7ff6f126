"""The gradient-free inversion methods against plain loops over diffusers' UNet, in float64."""

from collections.abc import Callable, Iterator

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

import nti
from nti.model import StableDiffusion
from oracle_unet import converted_unet
from tiny import SD_LIKE, make_model
from tolerances import assert_close

T, W = 8, 3.0
PROMPT = "a cat sitting next to a mirror"
TARGET = "a dog sitting next to a mirror"
STRIDE = 1000 // T
TIMESTEPS = [1 + STRIDE * k for k in reversed(range(T))]
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
BARS = torch.cumprod(1 - BETAS, dim=0)


class Theirs:
    """The equations, with the network of another library."""

    def __init__(self, model: StableDiffusion, image: Tensor) -> None:
        self.unet: UNet2DConditionModel = converted_unet(model)
        self.cond, self.target = (model.encode_text([p]) for p in (PROMPT, TARGET))
        self.null = model.encode_text([""])
        self.z0 = model.encode_image(image)

    def eps(self, z: Tensor, t: int, context: Tensor) -> Tensor:
        found: Tensor = self.unet(z, t, context).sample
        return found

    def guided(self, z: Tensor, t: int, uncond: Tensor, cond: Tensor) -> Tensor:
        eps = self.eps(z, t, uncond)
        return eps + W * (self.eps(z, t, cond) - eps)

    def down(self, z: Tensor, t: int, eps: Tensor, eta: float = 0.0) -> tuple[Tensor, Tensor]:
        """DDIM's equation 12: the next latent without its noise, and the noise's deviation."""
        here, there = BARS[t], BARS[max(t - STRIDE, 0)]
        sigma = eta * ((1 - there) / (1 - here)).sqrt() * (1 - here / there).sqrt()
        z0 = (z - (1 - here).sqrt() * eps) / here.sqrt()
        return there.sqrt() * z0 + (1 - there - sigma**2).sqrt() * eps, sigma

    def up(self, z: Tensor, t: int, eps: Tensor) -> Tensor:
        """The same, from t's predecessor to t."""
        here, there = BARS[max(t - STRIDE, 0)], BARS[t]
        z0 = (z - (1 - here).sqrt() * eps) / here.sqrt()
        return there.sqrt() * z0 + (1 - there).sqrt() * eps

    def pivot(self, iterations: int = 1) -> list[Tensor]:
        """z_T first."""
        found = [self.z0]
        for t in reversed(TIMESTEPS):
            z = found[-1]
            for _ in range(iterations):
                z = self.up(found[-1], t, self.eps(z, t, self.cond))
            found.append(z)
        return found[::-1]

    def sampled(self, z: Tensor, uncond: Tensor, cond: Tensor) -> Tensor:
        visited = [z]
        for t in TIMESTEPS:
            eps = self.guided(visited[-1], t, uncond, cond)
            visited.append(self.down(visited[-1], t, eps)[0])
        return torch.cat(visited)


@pytest.fixture(scope="module")
def ours() -> StableDiffusion:
    return make_model(SD_LIKE)


@pytest.fixture(scope="module")
def theirs(ours: StableDiffusion, image: Tensor) -> Iterator[Theirs]:
    with torch.no_grad():
        yield Theirs(ours, image)


@pytest.fixture
def made(ours: StableDiffusion, image: Tensor) -> Callable[..., nti.Inversion]:
    def of(method: str, **settings: object) -> nti.Inversion:
        return nti.invert(ours, image, PROMPT, method=method, steps=T, guidance_scale=W, **settings)

    return of


Make = Callable[..., nti.Inversion]


@torch.no_grad()
def test_ddim_and_negative_prompt(theirs: Theirs, made: Make) -> None:
    pivot = theirs.pivot()
    for method, uncond in (("ddim", theirs.null), ("negative-prompt", theirs.cond)):
        inversion = made(method)
        assert_close(inversion.pivot, torch.cat(pivot))
        assert_close(inversion.latents, theirs.sampled(pivot[0], uncond, theirs.cond))


@torch.no_grad()
def test_a_fixed_point_under_ddim(theirs: Theirs, made: Make) -> None:
    pivot = theirs.pivot(iterations=3)
    inversion = made("ddim", pivot="fixed-point", pivot_iterations=3)
    assert_close(inversion.pivot, torch.cat(pivot))
    assert_close(inversion.latents, theirs.sampled(pivot[0], theirs.null, theirs.cond))


@torch.no_grad()
def test_direct_inversion_and_its_edit(ours: StableDiffusion, theirs: Theirs, made: Make) -> None:
    """The published order: the offset is added to the source's row, after the scheduler's step."""
    pivot, source, edit = theirs.pivot(), [], []
    z_s, z_e = pivot[0], pivot[0]
    offsets = []
    for t, target in zip(TIMESTEPS, pivot[1:], strict=True):
        reached, _ = theirs.down(z_s, t, theirs.guided(z_s, t, theirs.null, theirs.cond))
        offsets.append(target - reached)
        z_s = reached + offsets[-1]
        z_e, _ = theirs.down(z_e, t, theirs.guided(z_e, t, theirs.null, theirs.target))
        source.append(z_s)
        edit.append(z_e)
    free = {"cross_replace": 0.0, "self_replace": 0.0}
    inversion = made("direct")
    assert_close(inversion.latents[1:], torch.cat(source))
    assert_close(nti.edit(ours, inversion, TARGET, **free).latents[1:, 0], torch.cat(edit))
    both = made("direct-both-branches")
    assert both.offsets is not None
    assert_close(both.offsets, torch.cat(offsets))
    z_e, edit = pivot[0], []
    for t, offset in zip(TIMESTEPS, offsets, strict=True):
        z_e, _ = theirs.down(z_e, t, theirs.guided(z_e, t, theirs.null, theirs.target))
        z_e = z_e + offset
        edit.append(z_e)
    assert_close(nti.edit(ours, both, TARGET, **free).latents[1:, 0], torch.cat(edit))


@torch.no_grad()
def test_edit_friendly_inversion_and_its_edit(
    ours: StableDiffusion, theirs: Theirs, made: Make
) -> None:
    """DDPM's sampler: an edit goes on from step 2 with the source's noises."""
    noise = torch.randn((T, 1, 4, 8, 8), generator=torch.Generator().manual_seed(0)).double()
    visited = [
        BARS[t].sqrt() * theirs.z0 + (1 - BARS[t]).sqrt() * eps
        for t, eps in zip(TIMESTEPS, noise, strict=True)
    ] + [theirs.z0]
    kicks = []
    for t, z, after in zip(TIMESTEPS, visited, visited[1:], strict=False):
        eps = theirs.guided(z, t, theirs.null, theirs.cond)
        mean, _ = theirs.down(z, t, eps, eta=1.0)
        kicks.append(after - mean)
    inversion = made("edit-friendly")
    assert inversion.offsets is not None
    assert_close(inversion.pivot, torch.cat(visited))
    assert_close(inversion.offsets, torch.cat(kicks))
    z, edited = visited[2], []
    for t, kick in zip(TIMESTEPS[2:], kicks[2:], strict=True):
        eps = theirs.guided(z, t, theirs.null, theirs.target)
        z = theirs.down(z, t, eps, eta=1.0)[0] + kick
        edited.append(z)
    found = nti.edit(ours, inversion, TARGET, cross_replace=0.0, self_replace=0.0, start=2)
    assert_close(found.latents[1:, 0], torch.cat(edited))


@torch.no_grad()
def test_random_pivots(theirs: Theirs, made: Make) -> None:
    noise = torch.randn((1, 1, 4, 8, 8), generator=torch.Generator().manual_seed(5)).double()[0]
    pivot = made("null-text-random-pivot", seed=5, inner_steps=1).pivot
    for z, t in zip(pivot, TIMESTEPS, strict=False):
        assert_close(z[None], BARS[t].sqrt() * theirs.z0 + (1 - BARS[t]).sqrt() * noise)
    assert torch.equal(pivot[-1][None], theirs.z0)
