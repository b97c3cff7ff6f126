"""The rows of a batch that are edits: their embeddings, their guidance, their step.

Every editor that samples takes its steps here, so that each goes with every inversion method.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nti.arguments import a_number, a_text, an_instance, shown, texts
from nti.editing.proximal import Proximal
from nti.errors import Callback, check_finite, report
from nti.inversion.inversion import Inversion
from nti.inversion.sampling import check_model
from nti.model import StableDiffusion
from nti.sampling.schedule import Schedule, ddim_step
from nti.sampling.step import guided_noise

__all__ = ["EditRows", "check_objects"]


def check_objects(model: StableDiffusion, inversion: Inversion) -> None:
    """Raise ValueError unless these are a model and an inversion that was made with it."""
    an_instance("model", model, StableDiffusion)
    an_instance("inversion", inversion, Inversion)
    check_model(model, inversion)


@dataclass(frozen=True, eq=False)
class EditRows:
    """What stays the same over the steps of E edits of one source."""

    model: StableDiffusion
    inversion: Inversion
    schedule: Schedule
    visited: Tensor
    """The source's latents (T + 1, 4, h, w)."""
    cond: Tensor
    """Of source and edits, by timestep (T, 1 + E, 77, C)."""
    uncond_source: Tensor
    """(T, 1, 77, C)."""
    uncond_edits: Tensor
    """(T, 1, 77, C)."""
    offsets: Tensor | None
    """What is added to each step of the source (T, 1, 4, h, w)."""
    share_offsets: bool
    """Whether it is added to the edits' steps, too."""
    w_source: float
    w_edits: float
    proximal: Proximal | None = None

    @classmethod
    def create(
        cls,
        model: StableDiffusion,
        inversion: Inversion,
        prompts: str | Sequence[str],
        *,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        mix: float | None = None,
        proximal: Proximal | None = None,
    ) -> "EditRows":
        """Encode the prompts, and take from the inversion what its method gives to edits.

        Args:
            model: the model that the inversion was made with.
            inversion: of the source image.
            prompts: E edited prompts, or one.
            guidance_scale: w of the edits; None: the inversion's.
            negative_prompt: its embedding takes the place of the edits' null embeddings at every
                step; None: what the method says.
            mix: how much of an edit's prompt is the target's embedding, the rest being the learned
                one; None: what the method says.
            proximal: see `Proximal`; None: plain guidance.

        Raises:
            ValueError: settings that do not fit, or an inversion without a trajectory.

        """
        check_objects(model, inversion)
        prompts = texts("prompts", prompts)
        if not prompts:
            raise ValueError("prompts: got none, expected one edited prompt or more")
        if proximal is not None:
            an_instance("proximal", proximal, Proximal)
        method = inversion.row

        def placed(values: Tensor) -> Tensor:
            return values.to(model.device, model.state_dtype)

        uncond = placed(inversion.uncond)[:, None]
        negative = "" if negative_prompt is None and method.edits_start == "null" else None
        if negative_prompt is not None:
            negative = a_text("negative_prompt", negative_prompt)
        cond = model.encode_text([inversion.prompt, *prompts]).expand(inversion.steps, -1, -1, -1)
        if inversion.cond is not None:
            learned = placed(inversion.cond)[:, None]
            share = method.edits_mix if mix is None else a_number("mix", mix, 0, 1)
            cond = torch.cat([learned, torch.lerp(learned, cond[:, 1:], share)], dim=1)
        elif mix is not None:
            raise ValueError(
                f"mix: got {shown(mix)} for an inversion by {inversion.method}, expected none: it"
                " learned no embedding of the prompt; invert with method='prompt-tuning'"
            )
        w = inversion.guidance_scale
        return cls(
            model=model,
            inversion=inversion,
            schedule=model.schedule(inversion.steps, eta=method.eta),
            visited=placed(inversion.latents),
            cond=cond,
            uncond_source=uncond,
            uncond_edits=uncond
            if negative is None
            else model.encode_text([negative]).expand_as(uncond),
            offsets=None if inversion.offsets is None else placed(inversion.offsets)[:, None],
            share_offsets=method.keeps == "shared offsets",
            w_source=w,
            w_edits=w if guidance_scale is None else a_number("guidance_scale", guidance_scale),
            proximal=proximal,
        )

    @property
    def count(self) -> int:
        """E."""
        return self.cond.shape[1] - 1

    @property
    def encoded(self) -> Tensor:
        """z_0, the encoded image, whatever the method made of it: (1, 4, h, w)."""
        return self.inversion.pivot[-1:].to(self.model.device, self.model.state_dtype)

    def off_trajectory(self) -> "EditRows":
        """Return the rows of edits that start from fresh noise: they take plain DDIM steps.

        What a method adds to the source's steps leads along the source's own latents, so it is of
        no use elsewhere.
        """
        schedule = self.model.schedule(self.inversion.steps)
        return replace(self, schedule=schedule, offsets=None, share_offsets=False)

    def check_trajectory(self, editor: str) -> None:
        """Raise ValueError for an inversion without latents between z_T and z_0."""
        if not self.inversion.row.sampled:
            raise ValueError(
                f"inversion: got one by {self.inversion.method}, which has no trajectory for"
                f" {editor}: invert with another method, or edit with sdedit, masked,"
                " imagic or unitune"
            )

    def noise(self, i: int, edits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the edits' unconditional and conditional noise at step i, without any control."""
        context = torch.cat([self.uncond_edits[i].expand(len(edits), -1, -1), self.cond[i, 1:]])
        timestep = self.schedule.timestep(i, edits)
        eps = self.model.steps.noise(torch.cat([edits, edits]), timestep, context)
        eps_uncond, eps_cond = eps.chunk(2)
        return eps_uncond, eps_cond

    def step(self, i: int, edits: Tensor, eps_uncond: Tensor, eps_cond: Tensor) -> Tensor:
        """z_t -> z_{t-1} of the edits (E, 4, h, w)."""
        guided = guided_noise if self.proximal is None else self.proximal.noise
        eps = guided(eps_uncond, eps_cond, self.w_edits)
        after = ddim_step(edits, eps, self.schedule.coefficients(i))
        if self.offsets is not None and self.share_offsets:
            after = after + self.offsets[i]
        if self.proximal is not None:
            source = self.visited[i + 1][None]
            t = self.schedule.timesteps[i]
            after = self.proximal.pulled(after, source, eps_uncond, eps_cond, t)
        return after

    def source_step(self, i: int, source: Tensor, eps_uncond: Tensor, eps_cond: Tensor) -> Tensor:
        """z_t -> z_{t-1} of a source (1, 4, h, w) that is computed, not replayed."""
        if self.inversion.row.replayed:  # it is led back to its latents at every step
            return self.visited[i + 1][None]
        eps = guided_noise(eps_uncond, eps_cond, self.w_source)
        after = ddim_step(source, eps, self.schedule.coefficients(i))
        return after if self.offsets is None else after + self.offsets[i]

    def sample(
        self,
        edits: Tensor,
        start: int,
        editor: str,
        callback: Callback | None,
        *,
        noise: Callable[[int, Tensor], tuple[Tensor, Tensor]] | None = None,
        after: Callable[[int, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Take guided steps from step `start` to the last.

        Args:
            edits: (E, 4, h, w), at timestep `start`.
            start: T for no step at all.
            editor: whom a NotFiniteError names.
            callback: see `nti.errors.Callback`.
            noise: predicts the edits' noise as the method `noise` does; None: that method, which
                controls nothing.
            after: what becomes of the edits (E, 4, h, w) after step i, a function of (i, edits);
                None: nothing.

        Returns:
            The edits' latents, the first included: (T - start + 1, E, 4, h, w).

        Raises:
            NotFiniteError: latents that overflow.
            Stopped: by the callback.

        """
        predict = self.noise if noise is None else noise
        latents = [edits]
        for i in range(start, self.schedule.steps):
            edits = self.step(i, edits, *predict(i, edits))
            if after is not None:
                edits = after(i, edits)
            where = f"{editor} at timestep {self.schedule.timesteps[i]}"
            check_finite(edits, where, self.model.dtype)
            latents.append(edits)
            report(callback, i + 1 - start, self.schedule.steps - start)
        return torch.stack(latents)
