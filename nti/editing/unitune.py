"""UniTune: a model that knows one image by a rare word, which an edit's prompt begins with
(Valevski et al. 2022, arXiv 2210.09477).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nti.arguments import a_callable, a_number, a_text, a_whole_number, texts
from nti.editing.edit_rows import check_objects
from nti.editing.fine_tune import fine_tune, with_unet
from nti.editing.result import EditedLatents, EditResult, decoded
from nti.errors import Callback, check_finite, report
from nti.inversion.inversion import Inversion
from nti.inversion.noised import draw
from nti.model import StableDiffusion
from nti.sampling.schedule import noised

__all__ = ["UniTune", "unitune"]

RARE = "beikkpic"
"""A word that Stable Diffusion's training captions hardly hold."""

ITERATIONS, RATE, BATCH = 100, 9e-5, 4
"""Of the public port to Stable Diffusion."""

STRENGTH = 0.9
"""Of the range that is reported to work best, 0.8 to 0.98."""

LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True, eq=False)
class UniTune:
    """An image that was learned by a rare word; edits are sampled from it, any number of them."""

    model: StableDiffusion
    """With the fine-tuned UNet. The model that it was made from is as it was."""
    latent: Tensor
    """z_0 of the image (1, 4, h, w)."""
    steps: int
    """T timesteps, as the inversion has."""
    guidance_scale: float
    """The inversion's w, the default of edits."""
    rare: str
    """The word that stands for the image."""
    losses: Tensor
    """Of each iteration, before its step."""

    @classmethod
    @torch.inference_mode(mode=False)  # weights learn, whatever the caller's mode
    def fit(
        cls,
        model: StableDiffusion,
        inversion: Inversion,
        *,
        rare: str = RARE,
        iterations: int = ITERATIONS,
        learning_rate: float = RATE,
        batch: int = BATCH,
        seed: int = 0,
        callback: Callback | None = None,
    ) -> "UniTune":
        """Train the cross-attention of a copy of the UNet on the image and the rare word.

        In float32 that takes 16 bytes for each weight that learns: weight, gradient and Adam's two
        moments. Those are 0.7 GiB for the 43,962,560 of Stable Diffusion v1's cross-attention. The
        other weights are the model's own where it is in float32, else copied to it (3.0 GiB). One
        pass's activations come on top.

        Args:
            model: the model that the inversion was made with.
            inversion: of the image, by any method: of it z_0, the number of steps and the guidance
                are taken.
            rare: a word that means nothing to the model.
            iterations: of Adam.
            learning_rate: of Adam.
            batch: fresh timesteps and noises an iteration, whose gradients add up.
            seed: of timesteps and noise, which are drawn on the CPU.
            callback: called with (iterations done, in all); see `nti.errors.Callback`.

        Raises:
            ValueError: an inversion of another model, or settings that do not fit.
            NotFiniteError: losses that overflow.
            Stopped: by the callback.

        """
        check_objects(model, inversion)
        if not (rare := a_text("rare", rare).strip()):
            raise ValueError("rare: got no word, expected one that means nothing to the model")
        iterations = a_whole_number("iterations", iterations, 0)
        batch = a_whole_number("batch", batch, 1)
        rate = a_number("learning_rate", learning_rate, 0)
        generator = torch.Generator().manual_seed(a_whole_number("seed", seed, 0, LARGEST_SEED))
        latent = inversion.pivot[-1:].to(model.device, model.state_dtype, copy=True)
        unet, losses = fine_tune(
            model, latent, model.encode_text([rare]), learns=lambda name: "cross_attention" in name,
            iterations=iterations, learning_rate=rate, batch=batch, generator=generator,
            callback=a_callable("callback", callback),
        )  # fmt: skip
        w = inversion.guidance_scale
        return cls(with_unet(model, unet), latent, inversion.steps, w, rare, losses)

    def edit(
        self,
        prompts: str | Sequence[str],
        *,
        strength: float = STRENGTH,
        guidance_scale: float | None = None,
        seed: int = 0,
        callback: Callback | None = None,
    ) -> EditResult:
        """Sample "rare edit" from the image under noise.

        Args:
            prompts: E descriptions of the edited image, or one, without the rare word. An empty one
                is the rare word alone, whose picture is the image.
            strength: t_0, the share of the steps that are sampled, int(T * strength) of them. At 1
                sampling starts from noise alone.
            guidance_scale: w; None: the inversion's. The public port goes up to 16.
            seed: of the noise, which all edits share. It is drawn on the CPU.
            callback: called with (steps done, steps in all); see `nti.errors.Callback`.

        Raises:
            ValueError: settings that do not fit.
            NotFiniteError: latents that overflow.
            Stopped: by the callback.

        """
        edited = self.edit_latents(
            prompts, strength=strength, guidance_scale=guidance_scale, seed=seed, callback=callback
        )
        return decoded(self.model, edited)

    @torch.no_grad()
    def edit_latents(
        self,
        prompts: str | Sequence[str],
        *,
        strength: float = STRENGTH,
        guidance_scale: float | None = None,
        seed: int = 0,
        callback: Callback | None = None,
    ) -> EditedLatents:
        """Sample as `edit` does, which decodes this; arguments and errors are the same."""
        prompts = _some(prompts)
        model, schedule = self.model, self.model.schedule(self.steps)
        start = schedule.first_step(strength, fewest=1)
        own = self.guidance_scale if guidance_scale is None else guidance_scale
        w = self.latent.new_full((), a_number("guidance_scale", own))
        generator = torch.Generator().manual_seed(a_whole_number("seed", seed, 0, LARGEST_SEED))
        a_callable("callback", callback)
        (noise,) = draw(generator, 1, self.latent)
        at = noised(self.latent, noise, schedule.alpha_bar[start]) if start else noise
        cond = model.encode_text([f"{self.rare} {prompt}".strip() for prompt in prompts])
        uncond = model.encode_text([""]).expand_as(cond)
        latents = [at.expand(len(prompts), -1, -1, -1)]
        for i in range(start, schedule.steps):
            step, t = schedule.coefficients(i).to(at), schedule.timestep(i, at)
            latents.append(model.steps.guided_step(latents[-1], t, uncond, cond, step, w))
            check_finite(latents[-1], f"edit at timestep {schedule.timesteps[i]}", model.dtype)
            report(callback, i + 1 - start, schedule.steps - start)
        return EditedLatents(torch.stack(latents), self.latent, None)


def unitune(
    model: StableDiffusion,
    inversion: Inversion,
    prompts: str | Sequence[str],
    *,
    rare: str = RARE,
    iterations: int = ITERATIONS,
    learning_rate: float = RATE,
    batch: int = BATCH,
    strength: float = STRENGTH,
    guidance_scale: float | None = None,
    seed: int = 0,
    callback: Callback | None = None,
) -> EditResult:
    """Edit an inverted image by UniTune (arXiv 2210.09477): fit once, then sample all prompts.

    `UniTune` keeps what was fitted for more edits; its `fit` says what memory that takes.

    Args:
        model: the model that the inversion was made with.
        inversion: of the image, by any method.
        prompts: see `UniTune.edit`.
        rare: see `UniTune.fit`.
        iterations: see there.
        learning_rate: see there.
        batch: see there.
        strength: see `UniTune.edit`.
        guidance_scale: see there.
        seed: of what is drawn in training, and of the noise that sampling starts from.
        callback: called with (iterations and steps done, in all); see `nti.errors.Callback`.

    Raises:
        ValueError: an inversion of another model, or settings that do not fit.
        NotFiniteError: what overflows.
        Stopped: by the callback.

    """
    check_objects(model, inversion)
    _some(prompts)
    if guidance_scale is not None:
        a_number("guidance_scale", guidance_scale)
    a_callable("callback", callback)
    iterations = a_whole_number("iterations", iterations, 0)
    start = model.schedule(inversion.steps).first_step(strength, fewest=1)
    total = iterations + inversion.steps - start
    fitted = UniTune.fit(
        model, inversion, rare=rare, iterations=iterations, learning_rate=learning_rate,
        batch=batch, seed=seed, callback=lambda done, _: report(callback, done, total),
    )  # fmt: skip
    return fitted.edit(
        prompts, strength=strength, guidance_scale=guidance_scale, seed=seed,
        callback=lambda done, _: report(callback, iterations + done, total),
    )  # fmt: skip


def _some(prompts: str | Sequence[str]) -> tuple[str, ...]:
    """Return one prompt or more."""
    checked = texts("prompts", prompts)
    if not checked:
        raise ValueError("prompts: got none, expected one edited prompt or more")
    return checked
