"""What attention looks at in an inverted image and in its edits: full maps, averaged."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from einops import rearrange
from torch import Tensor

from nti.arguments import a_callable, a_text, a_whole_number, an_instance, shown, texts
from nti.config import UNetConfig
from nti.editing.edit_rows import EditRows, check_objects
from nti.editing.plan import EditPlan
from nti.editing.prompt_to_prompt import edit_latents
from nti.errors import Callback, check_finite, report
from nti.inversion.inversion import Inversion
from nti.model import StableDiffusion
from nti.networks.control import Site
from nti.sampling.step import controlled_noise

__all__ = ["PLACES", "average_attention", "check_count", "self_attention_components"]

PLACES = ("down", "middle", "up")


def average_attention(
    model: StableDiffusion,
    inversion: Inversion,
    plan: EditPlan | None = None,
    *,
    kind: str = "cross",
    level: int | None = None,
    places: Sequence[str] = ("down", "up"),
    block: int | None = None,
    guidance_scale: float | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Average attention maps over steps, heads and sites.

    Args:
        model: the model that the inversion was made with.
        inversion: of the image that is looked at.
        plan: edits whose maps are wanted too, after the edit of the maps.
        kind: `cross` (positions to tokens) or `self` (positions to positions).
        level: of the UNet, 0 the finest; None: the one whose maps local blend reads.
        places: of the UNet: some of `PLACES`.
        block: which transformer of a place and level, 0 the first; None: all.
        guidance_scale: w of the edits; None: the inversion's.
        callback: see `nti.errors.Callback`.

    Returns:
        (1 + E, h', w', keys) float32 on the CPU, the source first. Over the keys, the 77 tokens or
        the h' w' positions, each sums to 1 where the edit does not weigh words.

    Raises:
        ValueError: sites that there are none of, or another model's inversion.
        NotFiniteError: noise or maps that overflow.
        Stopped: by the callback.

    """
    check_objects(model, inversion)
    config = model.config.unet
    level = config.word_map_level if level is None else a_whole_number("level", level)
    block = None if block is None else a_whole_number("block", block)
    edits = 0 if plan is None else len(an_instance("plan", plan, EditPlan).prompts)
    where = a_text("kind", kind), level, texts("places", places), block
    hook = _MapAverage(*where, 1 + edits)
    _check_sites(config, hook)
    a_callable("callback", callback)
    if plan is not None:
        w = guidance_scale
        edit_latents(model, inversion, plan, guidance_scale=w, hook=hook, callback=callback)
    elif guidance_scale is None:
        _replay(model, inversion, hook, callback)
    else:
        raise ValueError(
            f"guidance_scale: got {shown(guidance_scale)} without a plan, expected None: what the"
            " image's own words attend to does not depend on it"
        )
    found = hook.average()
    check_finite(found, "attention maps", model.dtype)
    height = inversion.latents.shape[-2] // 2**level
    return rearrange(found, "r (h w) keys -> r h w keys", h=height)


def self_attention_components(maps: Tensor, count: int) -> Tensor:
    """The principal components of averaged self-attention: what goes together in the image.

    Args:
        maps: (h, w, h * w), of one image, as `average_attention` gives them.
        count: how many, the strongest first.

    Returns:
        (count, h, w); the sign of each is arbitrary.

    Raises:
        ValueError: another shape, or more components than positions.

    """
    shape = tuple(an_instance("maps", maps, Tensor).shape)
    if len(shape) != 3 or shape[2] != shape[0] * shape[1]:
        raise ValueError(f"maps: got {shape}, expected (h, w, h * w)")
    height, width, positions = shape
    count = check_count(count, positions)
    check_finite(maps, "maps", maps.dtype)
    rows = maps.flatten(0, 1).double()
    centred = rows - rows.mean(dim=1, keepdim=True)
    components: Tensor = torch.linalg.svd(centred).Vh[:count]
    return components.view(count, height, width).to(maps.dtype)


def check_count(count: int, positions: int) -> int:
    """Return how many components; ValueError for more than there are positions, or none."""
    return a_whole_number("components", count, 1, positions, ", the positions")


@dataclass(eq=False)
class _MapAverage:
    """A hook that averages the maps of the last rows of a batch, over heads, sites and steps."""

    kind: str
    level: int
    places: tuple[str, ...]
    block: int | None
    rows: int
    total: Tensor | None = None
    count: int = field(default=0)

    def wants(self, site: Site) -> bool:
        """Whether a map of this site is averaged."""
        return (
            (site.kind, site.level) == (self.kind, self.level)
            and site.place in self.places
            and self.block in (None, site.block)
        )

    def __call__(self, site: Site, maps: Tensor) -> Tensor:
        """Add a map (B, heads, L, S)."""
        mean = maps[-self.rows :].float().mean(dim=1)
        self.total = mean if self.total is None else self.total + mean
        self.count += 1
        return maps

    def average(self) -> Tensor:
        """(rows, L, S) float32."""
        assert self.total is not None
        return self.total.cpu() / self.count


def _check_sites(config: UNetConfig, hook: _MapAverage) -> None:
    deepest = len(config.channel_multipliers) - 1
    blocks = {
        (place, level): config.res_blocks + (place == "up")
        for place in ("down", "up")
        for level in config.attention_levels
    } | {("middle", deepest): 1}
    known = hook.kind in ("cross", "self") and set(hook.places) <= set(PLACES)
    most = max(blocks.get((place, hook.level), 0) for place in (*hook.places, ""))
    if not known or not 0 <= (hook.block or 0) < most:
        block = "" if hook.block is None else f", block {hook.block}"
        listed = ", ".join(f"{place} {level} ({n})" for (place, level), n in sorted(blocks.items()))
        raise ValueError(
            f"attention: got {hook.kind} at level {hook.level} of {', '.join(hook.places)}{block},"
            f" expected cross or self at one of these, with so many blocks: {listed}"
        )


@torch.no_grad()
def _replay(
    model: StableDiffusion, inversion: Inversion, hook: _MapAverage, callback: Callback | None
) -> None:
    """Predict the conditional noise at each latent that the inversion visited."""
    rows = EditRows.create(model, inversion, inversion.prompt)
    rows.check_trajectory("attention")
    schedule, latents = rows.schedule, rows.visited
    for i in range(schedule.steps):
        t = schedule.timestep(i, latents)
        eps, _ = controlled_noise(model.unet, latents[i : i + 1], t, rows.cond[i, :1], None, hook)
        check_finite(eps, f"attention at timestep {schedule.timesteps[i]}", model.dtype)
        report(callback, i + 1, schedule.steps)
