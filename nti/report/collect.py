"""What a report shows, as numbers and pictures: no page yet."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from nti.editing.edit_rows import check_objects
from nti.editing.plan import EditPlan
from nti.editing.prompt_to_prompt import edit_latents
from nti.errors import Callback, report
from nti.image import to_pil
from nti.inversion.inversion import Inversion
from nti.inversion.sampling import reconstruct_latents, sample
from nti.model import StableDiffusion
from nti.networks.control import Site
from nti.networks.tokenizer import TokenizedPrompt

__all__ = ["Collected", "Edited", "collect"]

MOST_FRAMES = 25
"""Steps whose attention maps are kept."""
MOST_TOKENS = 24


@dataclass(frozen=True)
class Edited:
    """One edit."""

    prompt: str
    picture: Image.Image
    mode: str
    tokens: list[str]
    """Of the edited prompt, from its start to its end."""
    mapping: list[list[float]]
    """M: source tokens x the edit's."""
    own: list[float]
    """Where an edit's token has no source."""
    maps: list[Any]
    """(frames, tokens, positions), 0 to 255."""
    masks: list[Any] | None
    """Where local blend let it change, (frames, positions) of 0 and 1."""


@dataclass(frozen=True)
class Collected:
    """One inversion, its baselines and edits. A curve has a number for each of T or T + 1 steps."""

    prompt: str
    method: str
    guidance_scale: float
    model_name: str
    timesteps: list[int]
    pictures: dict[str, Image.Image]
    """`photograph` where it was given, `autoencoder` (the bound), `ddim` (plain sampling from z_T),
    `inversion` (sampling with what was learned)."""
    decibels: dict[str, float]
    """PSNR of each against the photograph, or without one against the bound."""
    apart: dict[str, list[float]]
    """Root mean square distance of `ddim` and `inversion` from the pivot at each latent."""
    losses: list[list[float | None]]
    """Of each timestep's inner iterations."""
    moved: list[float]
    """Distance of each null embedding from psi(""), as a share of its norm."""
    frames: list[int]
    """The steps whose maps are kept."""
    side: tuple[int, int]
    """(height, width) of the maps."""
    mask_side: tuple[int, int]
    tokens: list[str]
    maps: list[Any]
    edits: list[Edited]


@torch.no_grad()
def collect(
    model: StableDiffusion,
    inversion: Inversion,
    plan: EditPlan | None = None,
    *,
    photograph: Tensor | None = None,
    callback: Callback | None = None,
) -> Collected:
    """Sample an inversion with and without what it learned, and its edits, and look at all of it.

    Args:
        model: the model that the inversion was made with.
        inversion: of an image.
        plan: of edits; None: the words of the image's own prompt alone are looked at.
        photograph: what was inverted, (1, 3, H, W) in [-1, 1]; None: PSNRs are against the
            autoencoder's picture.
        callback: called with (parts done, parts in all); see `nti.errors.Callback`.

    Raises:
        ValueError: another model's inversion, or a plan that was not made for it.
        NotFiniteError: values that overflow.
        Stopped: by the callback.

    """
    check_objects(model, inversion)
    schedule = model.schedule(inversion.steps)
    null = model.encode_text([""])
    cond = model.encode_text([inversion.prompt])
    pivot = inversion.pivot.to(model.device, model.state_dtype)
    w = inversion.guidance_scale
    uncond = null.expand(inversion.steps, 1, -1, -1)
    plain = sample(model.steps, pivot[:1], cond, uncond, schedule, w)[:, 0]
    report(callback, 1, 4)
    learned = reconstruct_latents(model, inversion)[:, 0]
    report(callback, 2, 4)
    pixels = model.decode_latent(torch.stack([pivot[-1], plain[-1], learned[-1]])).cpu()
    shown = dict(zip(("autoencoder", "ddim", "inversion"), pixels, strict=True))
    truth = shown["autoencoder"] if photograph is None else photograph[0].cpu()
    pictures = {} if photograph is None else {"photograph": to_pil(photograph.cpu())[0]}
    pictures |= {name: to_pil(x[None])[0] for name, x in shown.items()}
    if plan is None:
        plan = EditPlan.create(
            model.tokenizer, inversion.prompt, inversion.prompt, steps=inversion.steps
        )
        wanted = 0
    else:
        wanted = len(plan.prompts)
    frames = _frames(inversion.steps)
    hook = _Frames(model, 1 + len(plan.prompts))
    edited = edit_latents(model, inversion, plan, hook=hook, callback=hook.next_step)
    report(callback, 3, 4)
    maps = torch.stack(hook.steps)[frames]
    drawn = to_pil(model.decode_latent(edited.latents[-1]).cpu())
    source = model.tokenizer.encode(inversion.prompt)
    edits = [
        _edited(model, plan, number, drawn[number], maps[:, 1 + number], edited.masks, frames)
        for number in range(wanted)
    ]
    report(callback, 4, 4)
    norms = null.float().norm()
    moves = (inversion.uncond.to(null) - null).float().flatten(1).norm(dim=1) / norms
    height, width = pivot.shape[-2:]
    factor = 2**model.config.unet.word_map_level
    return Collected(
        prompt=inversion.prompt,
        method=inversion.method,
        guidance_scale=w,
        model_name=inversion.model_name,
        timesteps=list(schedule.timesteps),
        pictures=pictures,
        decibels={name: _psnr(x, truth) for name, x in shown.items() if x is not truth},
        apart={"ddim": _apart(plain, pivot), "inversion": _apart(learned, pivot)},
        losses=[[None if math.isnan(x) else x for x in row] for row in inversion.losses.tolist()],
        moved=moves.tolist(),
        frames=frames,
        side=(height // factor, width // factor),
        mask_side=(height, width),
        tokens=_names(source),
        maps=_levels(maps[:, 0], source),
        edits=edits,
    )


def _edited(
    model: StableDiffusion,
    plan: EditPlan,
    number: int,
    picture: Image.Image,
    maps: Tensor,
    masks: Tensor | None,
    frames: list[int],
) -> Edited:
    alignment, prompt = plan.alignments[number], plan.prompts[number]
    source, target = model.tokenizer.encode(plan.source), model.tokenizer.encode(prompt)
    rows, columns = (len(_names(each)) for each in (source, target))
    blended = None
    if masks is not None and plan.blend is not None and bool(plan.blend.blends[number]):
        blended = masks[frames, number].int().flatten(1).tolist()
    return Edited(
        prompt=prompt,
        picture=picture,
        mode=alignment.mode,
        tokens=_names(target),
        mapping=alignment.mapping[:rows, :columns].tolist(),
        own=alignment.own[:columns].tolist(),
        maps=_levels(maps, target),
        masks=blended,
    )


class _Frames:
    """A hook that keeps each step's maps, averaged over heads and sites of local blend's level."""

    def __init__(self, model: StableDiffusion, rows: int) -> None:
        self.level, self.rows = model.config.unet.word_map_level, rows
        self.sum: Tensor | None = None
        self.count = 0
        self.steps: list[Tensor] = []

    def wants(self, site: Site) -> bool:
        return site.kind == "cross" and site.level == self.level and site.place != "middle"

    def __call__(self, site: Site, maps: Tensor) -> Tensor:
        mean = maps[-self.rows :].float().mean(dim=1).cpu()
        self.sum = mean if self.sum is None else self.sum + mean
        self.count += 1
        return maps

    def next_step(self, done: int, total: int) -> None:
        """Close a step: (rows, positions, tokens)."""
        assert self.sum is not None
        self.steps.append(self.sum / self.count)
        self.sum, self.count = None, 0


def _frames(steps: int) -> list[int]:
    """Return at most `MOST_FRAMES` of the steps, the first and the last among them."""
    count = min(steps, MOST_FRAMES)
    return sorted({round(i * (steps - 1) / max(1, count - 1)) for i in range(count)})


def _names(prompt: TokenizedPrompt) -> list[str]:
    return ["start", *prompt.pieces[:MOST_TOKENS], "end"]


def _levels(maps: Tensor, prompt: TokenizedPrompt) -> list[Any]:
    """(frames, positions, 77) -> the tokens' maps (frames, tokens, positions) as whole numbers.

    255 is the most that a token of the prompt receives at any step.
    """
    words = maps[..., 1 : 1 + len(prompt.pieces[:MOST_TOKENS])].clamp(min=0)
    scaled = 255 * words / words.max().clamp(min=1e-12) if words.numel() else words
    levels: list[Any] = scaled.round().int().mT.tolist()
    return levels


def _apart(latents: Tensor, pivot: Tensor) -> list[float]:
    distances: list[float] = (
        (latents - pivot).float().flatten(1).square().mean(dim=1).sqrt().tolist()
    )
    return distances


def _psnr(image: Tensor, truth: Tensor) -> float:
    """DB of images in [-1, 1]."""
    error = float((image.double() - truth.double()).square().mean()) / 4
    return math.inf if error == 0 else -10 * math.log10(error)
