"""`edit`: the sampling loop with Prompt-to-Prompt's control, the source replayed from the
inversion. `nti.editing.reference` is the same with every map in memory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nti.arguments import a_callable, a_whole_number, an_instance, shown
from nti.editing.control_schedule import ControlSchedule, CrossWindow, Window
from nti.editing.edit_rows import EditRows, check_objects
from nti.editing.local_blend import START, THRESHOLD, BlendWords, LocalBlend
from nti.editing.plan import EditPlan
from nti.editing.proximal import Proximal
from nti.editing.result import EditedLatents, EditResult, drawn
from nti.editing.unchanged import warn_of_unchanged
from nti.errors import Callback, check_finite, report
from nti.inversion.inversion import Inversion
from nti.model import StableDiffusion
from nti.networks.control import MapHook
from nti.sampling.step import controlled_noise

__all__ = ["decode_edits", "edit", "edit_latents"]


def edit(
    model: StableDiffusion,
    inversion: Inversion,
    prompts: str | Sequence[str],
    *,
    mode: str | list[str] = "auto",
    cross_replace: CrossWindow | list[CrossWindow] = 0.8,
    self_replace: Window | list[Window] = 0.5,
    blend: BlendWords | list[BlendWords | None] | None = None,
    subtract: BlendWords | list[BlendWords | None] | None = None,
    reweight: Mapping[str, float] | list[Mapping[str, float] | None] | None = None,
    blend_start: float = START,
    blend_threshold: float = THRESHOLD,
    replay: bool = True,
    guidance_scale: float | None = None,
    negative_prompt: str | None = None,
    mix: float | None = None,
    proximal: Proximal | None = None,
    start: int = 0,
    callback: Callback | None = None,
) -> EditResult:
    """Edit an inverted image by its words (Prompt-to-Prompt, arXiv 2208.01626).

    Warns of an edit that changes nothing that can be seen, and says what to try.

    `mode`, `cross_replace`, `self_replace`, `blend`, `subtract` and `reweight` take one value for
    all edits or a list, one an edit. Where one of them is a pair (source, edit) or (start, end) it
    is a tuple, never a list.

    Args:
        model: the model that the inversion was made with.
        inversion: of the source image.
        prompts: E edited prompts, or one.
        mode: `replace` (word for word), `refine` (words added or removed), `reweight` (the same
            tokens), or `auto`: replace where both prompts have the same number of words and none
            that both have moved, refine elsewhere.
        cross_replace: until which share of the steps an edit's cross-attention is the source's; see
            `CrossWindow`.
        self_replace: until which share of the steps its self-attention is.
        blend: words outside whose regions nothing changes: ("cat", "tiger"), or one for both
            prompts. Several words of a prompt stand in a tuple or between commas.
        subtract: words in whose regions nothing changes.
        reweight: factors on the attention of words of the edited prompt: {"tiger": 2.0}.
        blend_start: share of the steps before blending begins.
        blend_threshold: share of its maximum above which a word's map counts for `blend` and
            `subtract`.
        replay: see `edit_latents`, as for all that follow.
        guidance_scale: see there.
        negative_prompt: see there.
        mix: see there.
        proximal: see there.
        start: see there.
        callback: see there.

    Raises:
        ValueError: settings that do not fit, with what was got and expected.
        NotFiniteError: latents that overflow.
        Stopped: by the callback.

    """
    check_objects(model, inversion)
    plan = EditPlan.create(
        model.tokenizer, inversion.prompt, prompts, steps=inversion.steps, mode=mode,
        cross_replace=cross_replace, self_replace=self_replace, blend=blend, subtract=subtract,
        reweight=reweight, blend_start=blend_start, blend_threshold=blend_threshold,
    )  # fmt: skip
    edited = edit_latents(
        model, inversion, plan, replay=replay, guidance_scale=guidance_scale,
        negative_prompt=negative_prompt, mix=mix, proximal=proximal, start=start,
        callback=callback,
    )  # fmt: skip
    return decode_edits(model, plan, edited)


def decode_edits(model: StableDiffusion, plan: EditPlan, edited: EditedLatents) -> EditResult:
    """Draw what `edit_latents` gives: the part of `edit` that follows it.

    Warns of an edit that changes nothing that can be seen. NotFiniteError for latents that
    overflow the decoder.
    """
    pixels = model.decode_latent(torch.cat([edited.source, edited.latents[-1]]))
    warn_of_unchanged(plan, pixels, edited.masks)
    return drawn(edited, pixels, plan.alignments)


@torch.no_grad()
def edit_latents(
    model: StableDiffusion,
    inversion: Inversion,
    plan: EditPlan,
    *,
    replay: bool = True,
    guidance_scale: float | None = None,
    negative_prompt: str | None = None,
    mix: float | None = None,
    proximal: Proximal | None = None,
    start: int = 0,
    callback: Callback | None = None,
    hook: MapHook | None = None,
) -> EditedLatents:
    """Edit an inversion as planned: the part of `edit` between the words and the pictures.

    Args:
        model: the model that the inversion was made with.
        inversion: of the source image, of the plan's prompt and steps.
        plan: of the edits.
        replay: read the source's latents from the inversion, and compute only its attention; False
            computes the source's branch too, as the published batch of 2E + 2 rows does.
        guidance_scale: w of the edits; None: the inversion's. The source keeps the inversion's.
        negative_prompt: its embedding takes the place of the edits' null embeddings at every step;
            None: those of the inversion. The source keeps its own. What null-text optimization
            learned is then lost to the edits, so they follow the image less closely.
        mix: how much of an edit's prompt is its own embedding, 0 to 1, where the inversion learned
            one of the source's prompt, the rest being that one; None: what the method says.
        proximal: guides the edits only where the prompt makes a difference (see `Proximal`).
        start: the step to start at, from the inversion's latent there; windows count from step 0
            all the same.
        callback: called with (steps done, steps in all); see `nti.errors.Callback`.
        hook: sees the full attention maps of the batch, at the cost of having them in memory. The
            last 1 + E rows are the conditional ones, the source's first. Its steps run eagerly.

    Raises:
        ValueError: an inversion that the plan was not made for, or settings that do not fit.
        NotFiniteError: latents that overflow.
        Stopped: by the callback.

    """
    check_objects(model, inversion)
    _check_plan(plan, inversion)
    plan.check_dtype(model.dtype)
    start = a_whole_number("start", start, 0, plan.steps - 1, ", a step of the inversion")
    a_callable("callback", callback)
    if hook is not None and not isinstance(hook, MapHook):
        raise ValueError(f"hook: got {shown(hook)}, expected a MapHook, with `wants` and a call")
    rows = EditRows.create(
        model, inversion, plan.prompts, guidance_scale=guidance_scale,
        negative_prompt=negative_prompt, mix=mix, proximal=proximal,
    )  # fmt: skip
    rows.check_trajectory("Prompt-to-Prompt")
    loop = _Loop(
        rows,
        controls=plan.controls.to(model.device, model.state_dtype),
        blend=None if plan.blend is None else plan.blend.to(model.device, model.state_dtype),
        replay=replay,
        hook=hook,
    )
    return loop.run(start, callback)


def _check_plan(plan: EditPlan, inversion: Inversion) -> None:
    an_instance("plan", plan, EditPlan)
    if (plan.source, plan.steps) != (inversion.prompt, inversion.steps):
        raise ValueError(
            f"plan: got one for {plan.source!r} in {plan.steps} steps, expected"
            f" {inversion.prompt!r} in {inversion.steps}, as the inversion is: plan anew"
        )


@dataclass(frozen=True, eq=False)
class _Loop:
    """What stays the same over the steps of one edit."""

    rows: EditRows
    controls: ControlSchedule
    blend: LocalBlend | None
    replay: bool
    hook: MapHook | None

    def run(self, start: int, callback: Callback | None) -> EditedLatents:
        """Sample from a step on."""
        rows, schedule, visited = self.rows, self.rows.schedule, self.rows.visited
        edits = visited[start].expand(rows.count, -1, -1, -1)
        source = visited[start][None]
        latents, masks, maps = [edits], [], None
        for i in range(start, schedule.steps):
            eps_source, eps_edits, words = self._noise(i, source, edits)
            edits = rows.step(i, edits, *eps_edits)
            if eps_source is None:
                source = visited[i + 1][None]
            else:
                source = rows.source_step(i, source, *eps_source)
            if self.blend is not None:
                assert words is not None
                maps = words if maps is None else maps + words
                mask = torch.ones_like(edits[:, 0], dtype=torch.bool)
                if i >= self.blend.first_step(schedule.steps):
                    mask = self.blend.mask(maps, (edits.shape[-2], edits.shape[-1]))
                    edits = torch.where(mask[:, None], edits, source)
                masks.append(mask)
            check_finite(edits, f"edit at timestep {schedule.timesteps[i]}", rows.model.dtype)
            latents.append(edits)
            report(callback, i + 1 - start, schedule.steps - start)
        return EditedLatents(torch.stack(latents), source, torch.stack(masks) if masks else None)

    def _noise(
        self, i: int, source: Tensor, edits: Tensor
    ) -> tuple[tuple[Tensor, Tensor] | None, tuple[Tensor, Tensor], Tensor | None]:
        """Predict (uncond, cond) noise of the source, unless it is replayed, and of the edits.

        The batch is [unconditional rows, conditional rows], and only the conditional half is
        controlled. A replayed source has no unconditional row, and none at all once no edit needs
        its attention, unless the steps keep to one layout.
        """
        rows, count = self.rows, len(edits)
        steps = rows.model.steps
        controlled = (
            self.controls.needs_source[i]
            or self.blend is not None
            or steps.one_layout
            or self.hook is not None
        )
        with_source = torch.cat([source, edits])
        uncond = rows.uncond_edits[i].expand(count, -1, -1)
        free = edits
        if not self.replay:
            free, uncond = with_source, torch.cat([rows.uncond_source[i], uncond])
        guided = with_source if controlled or not self.replay else edits
        latent = torch.cat([free, guided])
        context = torch.cat([uncond, rows.cond[i, -len(guided) :]])
        control = self.controls.control(i, len(latent), self._words()) if controlled else None
        timestep = rows.schedule.timestep(i, latent)
        if self.hook is None:
            eps, maps = steps.controlled_noise(latent, timestep, context, control)
        else:
            unet = rows.model.unet
            eps, maps = controlled_noise(unet, latent, timestep, context, control, self.hook)
        eps_edits = (eps[len(free) - count : len(free)], eps[-count:])
        eps_source = None if self.replay else (eps[:1], eps[len(free) : len(free) + 1])
        return eps_source, eps_edits, maps

    def _words(self) -> Tensor | None:
        """Return the word columns whose maps are wanted."""
        if self.blend is not None:
            return self.blend.words
        if not self.rows.model.steps.one_layout:
            return None
        count, tokens = self.rows.cond.shape[1:3]
        return self.rows.cond.new_zeros(count, tokens, 2 * (count - 1))
