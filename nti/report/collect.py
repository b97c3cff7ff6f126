"""What a report shows, as numbers and pictures: no page yet."""

import math
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from nti.editing.edit_rows import check_objects
from nti.editing.plan import EditPlan
from nti.editing.prompt_to_prompt import edit_latents
from nti.errors import Callback, report
from nti.image import psnr, to_pil
from nti.inversion.inversion import Inversion
from nti.inversion.methods import GENERATED
from nti.inversion.sampling import reconstruct_latents, sample
from nti.model import StableDiffusion
from nti.networks.control import Site
from nti.networks.tokenizer import TokenizedPrompt

__all__ = ["Collected", "Edited", "collect", "levels"]

MOST_FRAMES = 25
"""Steps whose attention maps are kept."""
MOST_TOKENS = 24
"""Tokens of a prompt that are shown, besides its start and its end."""

PIVOTS = {
    "ddim": "the trajectory of DDIM inversion",
    "one-noise": "the image under one noise",
    "many-noises": "the image under a noise for each timestep",
}


@dataclass(frozen=True, eq=False)
class Edited:
    """One edit."""

    prompt: str
    picture: Image.Image
    mode: str
    tokens: list[str]
    """Of the edited prompt, its start and its end around them."""
    mapping: list[list[float]]
    """M: source tokens x the edit's."""
    own: list[float]
    """Where an edit's token has no source."""
    maps: Tensor
    """(frames, tokens, positions) uint8."""
    masks: Tensor | None
    """Where local blend let it change, (frames, positions) bool."""


@dataclass(frozen=True, eq=False)
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
    labels: dict[str, str]
    """What each picture is."""
    decibels: dict[str, float]
    """PSNR of each against the photograph, or without one against the bound."""
    pivot: str
    """What sampling is to follow, in words."""
    apart: dict[str, list[float]]
    """Root mean square distance of `ddim` and `inversion` from the pivot at each latent."""
    losses: list[list[float | None]]
    """Of each timestep's inner iterations."""
    moved: list[float]
    """Distance of each learned embedding from where it began, as a share of that one's norm."""
    moved_from: str
    """`the empty prompt` or `the prompt`, whose embedding it began as."""
    frames: list[int]
    """The steps whose maps are kept."""
    side: tuple[int, int]
    """(height, width) of the maps."""
    mask_side: tuple[int, int]
    tokens: list[str]
    cut: int
    """Tokens of the longest prompt that are not shown."""
    maps: Tensor
    """(frames, tokens, positions) uint8."""
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
        ValueError: another model's inversion, one without a trajectory, a plan that was not made
        for it, or a photograph of another size.
        NotFiniteError: values that overflow.
        Stopped: by the callback.

    """
    check_objects(model, inversion)
    _check(model, inversion, photograph)
    schedule = model.schedule(inversion.steps)
    null, cond = model.encode_text([""]), model.encode_text([inversion.prompt])
    pivot = inversion.pivot.to(model.device, model.state_dtype)
    uncond = null.expand(inversion.steps, 1, -1, -1)
    w = inversion.guidance_scale
    plain = sample(model.steps, pivot[:1], cond, uncond, schedule, w)[:, 0]
    report(callback, 1, 4)
    learned = reconstruct_latents(model, inversion)[:, 0]
    report(callback, 2, 4)
    pixels = model.decode_latent(torch.stack([pivot[-1], plain[-1], learned[-1]])).cpu()
    shown = dict(zip(("autoencoder", "ddim", "inversion"), pixels[:, None], strict=True))
    if photograph is not None:
        shown = {"photograph": photograph.cpu(), **shown}
    truth = next(iter(shown.values()))
    looked_at = plan or EditPlan.create(
        model.tokenizer, inversion.prompt, inversion.prompt, steps=inversion.steps
    )
    frames = _frames(inversion.steps)
    hook = _Frames(model, 1 + len(looked_at.prompts))
    edited = edit_latents(model, inversion, looked_at, hook=hook, callback=hook.next_step)
    report(callback, 3, 4)
    maps = torch.stack(hook.steps)[frames]
    pictures = to_pil(model.decode_latent(edited.latents[-1]).cpu())
    prompts = [model.tokenizer.encode(text) for text in (inversion.prompt, *looked_at.prompts)]
    edits = [
        _edited(looked_at, number, prompts, picture, maps[:, 1 + number], edited.masks, frames)
        for number, picture in enumerate(pictures if plan else [])
    ]
    report(callback, 4, 4)
    began = null if inversion.cond is None else cond
    ended = inversion.uncond if inversion.cond is None else inversion.cond
    moves = (ended.to(began) - began).float().flatten(1).norm(dim=1) / began.float().norm()
    height, width = pivot.shape[-2:]
    factor = 2**model.config.unet.word_map_level
    return Collected(
        prompt=inversion.prompt,
        method=inversion.method,
        guidance_scale=w,
        model_name=inversion.model_name,
        timesteps=list(schedule.timesteps),
        pictures={name: to_pil(x)[0] for name, x in shown.items()},
        labels={name: _label(name, inversion) for name in shown},
        decibels={name: psnr(x, truth) for name, x in shown.items() if x is not truth},
        pivot="the trajectory that sampling took"
        if inversion.method == GENERATED
        else PIVOTS[inversion.row.pivot],
        apart={"ddim": _apart(plain, pivot), "inversion": _apart(learned, pivot)},
        losses=[[None if math.isnan(x) else x for x in row] for row in inversion.losses.tolist()],
        moved=moves.tolist(),
        moved_from="the empty prompt" if inversion.cond is None else "the prompt",
        frames=frames,
        side=(height // factor, width // factor),
        mask_side=(height, width),
        tokens=_names(prompts[0]),
        cut=max(0, max(len(prompt.pieces) for prompt in prompts) - MOST_TOKENS),
        maps=levels(maps[:, 0], prompts[0]),
        edits=edits,
    )


def levels(maps: Tensor, prompt: TokenizedPrompt) -> Tensor:
    """(frames, positions, 77) -> the tokens' maps (frames, tokens, positions) uint8.

    255 is the most that a token of the prompt receives at any step.
    """
    words = maps[..., 1 : 1 + min(len(prompt.pieces), MOST_TOKENS)].clamp(min=0)
    most = words.max().clamp(min=1e-12) if words.numel() else 1.0
    return (255 * words / most).round().to(torch.uint8).mT.contiguous()


def _check(model: StableDiffusion, inversion: Inversion, photograph: Tensor | None) -> None:
    if not inversion.row.sampled:
        raise ValueError(
            f"report: got an inversion by {inversion.method}, which has no trajectory to show,"
            " expected one by another method: invert the image again"
        )
    sides = [side * model.config.vae.downsampling for side in inversion.latents.shape[-2:]]
    expected = (1, 3, *sides)
    if photograph is not None and photograph.shape != expected:
        raise ValueError(
            f"photograph: got {tuple(photograph.shape)}, expected {expected}, as was inverted"
        )


def _label(name: str, inversion: Inversion) -> str:
    """Say what a picture is."""
    if name == "autoencoder" and inversion.method == GENERATED:
        return "the generated picture"
    return {
        "photograph": "the photograph",
        "autoencoder": "the autoencoder's picture: the bound",
        "ddim": "plain DDIM from the same noise",
        "inversion": inversion.method,
    }[name]


def _edited(
    plan: EditPlan,
    number: int,
    prompts: list[TokenizedPrompt],
    picture: Image.Image,
    maps: Tensor,
    masks: Tensor | None,
    frames: list[int],
) -> Edited:
    alignment, target = plan.alignments[number], prompts[1 + number]
    rows, columns = _places(prompts[0]), _places(target)
    blended = masks is not None and plan.blend is not None and bool(plan.blend.blends[number])
    return Edited(
        prompt=plan.prompts[number],
        picture=picture,
        mode=alignment.mode,
        tokens=_names(target),
        mapping=alignment.mapping[rows][:, columns].tolist(),
        own=alignment.own[columns].tolist(),
        maps=levels(maps, target),
        masks=masks[frames, number].flatten(1).cpu() if blended and masks is not None else None,
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


def _places(prompt: TokenizedPrompt) -> list[int]:
    """Return where the tokens that are shown stand: the start, the first words, the end."""
    return [0, *range(1, 1 + min(len(prompt.pieces), MOST_TOKENS)), prompt.end]


def _names(prompt: TokenizedPrompt) -> list[str]:
    return ["start", *prompt.pieces[:MOST_TOKENS], "end"]


def _apart(latents: Tensor, pivot: Tensor) -> list[float]:
    squares = (latents - pivot).float().flatten(1).square()
    distances: list[float] = squares.mean(dim=1).sqrt().tolist()
    return distances
