"""The gradient-free inversion methods against plain loops over diffusers' UNet, in float64."""

import itertools
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
def test_anderson_under_ddim(theirs: Theirs, made: Make) -> None:
    """The unconstrained form: the last residual, less its best fit by the differences (AIDI's
    algorithm 1; Walker and Ni 2011).
    """
    pivot = [theirs.z0]
    for t in reversed(TIMESTEPS):
        z, found = pivot[-1], []
        for _ in range(4):
            image = theirs.up(pivot[-1], t, theirs.eps(z, t, theirs.cond))
            found = [*found, (image, (image - z).flatten())][-3:]
            z = image
            if len(found) > 1:
                jumps = torch.stack([b[1] - a[1] for a, b in itertools.pairwise(found)], dim=1)
                fit = torch.linalg.lstsq(jumps, found[-1][1][:, None]).solution.flatten()
                for k, (a, b) in zip(fit, itertools.pairwise(found), strict=True):
                    z = z - k * (b[0] - a[0])
        pivot.append(z)
    inversion = made("ddim", pivot="anderson", pivot_iterations=4)
    assert_close(inversion.pivot, torch.cat(pivot[::-1]))


@torch.no_grad()
def test_negative_prompt_on_the_arc(theirs: Theirs, made: Make) -> None:
    """Each token's two states are turned into one another; 0.3 of the angle."""
    uncond = torch.empty_like(theirs.cond)
    for token in range(77):
        a, b = theirs.cond[0, token], theirs.null[0, token]
        angle = torch.arccos((a @ b / (a.norm() * b.norm())).clamp(max=1))
        near = angle < 1e-4
        share = 0.3 if near else torch.sin(0.3 * angle) / torch.sin(angle)
        rest = 0.7 if near else torch.sin(0.7 * angle) / torch.sin(angle)
        uncond[0, token] = rest * a + share * b
    latents = made("negative-prompt", towards_null=0.3).latents
    assert_close(latents, theirs.sampled(theirs.pivot()[0], uncond, theirs.cond))


@torch.no_grad()
def test_a_part_of_direct_inversion(theirs: Theirs, made: Make) -> None:
    """0.4 of what is missing, at steps 0, 3 and 6."""
    pivot = theirs.pivot()
    z, source = pivot[0], [pivot[0]]
    for i, (t, target) in enumerate(zip(TIMESTEPS, pivot[1:], strict=True)):
        z, _ = theirs.down(z, t, theirs.guided(z, t, theirs.null, theirs.cond))
        if i in (0, 3, 6):
            z = z + 0.4 * (target - z)
        source.append(z)
    latents = made("direct", pull_share=0.4, pull_every=3).latents
    assert_close(latents, torch.cat(source))


@torch.no_grad()
@pytest.mark.parametrize("norm", ["l0", "l1"])
def test_proximal_guidance(ours: StableDiffusion, theirs: Theirs, made: Make, norm: str) -> None:
    """Negative-prompt inversion's edit, whose guidance is thresholded as published; below t = 400
    what is not guided goes back to the source.
    """
    pivot = theirs.pivot()
    source = theirs.sampled(pivot[0], theirs.cond, theirs.cond)
    z, edited = pivot[0], []
    for i, t in enumerate(TIMESTEPS):
        eps_u, eps_c = theirs.eps(z, t, theirs.cond), theirs.eps(z, t, theirs.target)
        delta = eps_c - eps_u
        limit = delta.abs().flatten().quantile(0.6)
        mask = delta.abs() > limit
        if norm == "l1":
            delta = delta - delta.clamp(-limit, limit)
        z, _ = theirs.down(z, t, eps_u + W * delta * mask)
        if t < 400:
            wide = torch.nn.functional.max_pool2d(mask.double(), 3, 1, 1)
            z = z - (1 - wide) * (z - source[i + 1])
        edited.append(z)
    found = nti.edit(
        ours, made("negative-prompt"), TARGET, cross_replace=0.0, self_replace=0.0,
        proximal=nti.Proximal(norm, quantile=0.6, pull_below=400),
    )  # fmt: skip
    assert_close(found.latents[1:, 0], torch.cat(edited))


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
