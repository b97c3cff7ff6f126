"""Imagic: an edit between an image's own embedding and a prompt's, by a model that has learned the
image (Kawar et al. 2022, arXiv 2210.09276).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nti.arguments import a_callable, a_number, a_text, a_whole_number, texts
from nti.editing.edit_rows import check_objects
from nti.editing.fine_tune import all_timesteps, fine_tune, with_unet
from nti.editing.result import EditedLatents, EditResult, decoded
from nti.errors import Callback, report
from nti.inversion.inversion import Inversion
from nti.inversion.noise_matching import match_noise
from nti.inversion.noised import draw
from nti.inversion.sampling import sample
from nti.model import StableDiffusion

__all__ = ["Imagic", "imagic"]

ETA, W = 0.9, 3.0
"""What the null-text paper compares with (its Fig. 11), by the public port to Stable Diffusion."""

EMBEDDING_STEPS, EMBEDDING_RATE = 500, 1e-3
MODEL_STEPS, MODEL_RATE = 1000, 1e-6
"""Of that port, too."""

LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True, eq=False)
class Imagic:
    """An image and a prompt that were learned; edits are sampled from it, any number of them."""

    model: StableDiffusion
    """With the fine-tuned UNet. The model that it was made from is as it was."""
    latent: Tensor
    """z_0 of the image (1, 4, h, w)."""
    steps: int
    """T timesteps, as the inversion has."""
    target: Tensor
    """e_tgt, the prompt's token states (1, 77, C)."""
    optimized: Tensor
    """e_opt, the embedding that stands for the image (1, 77, C)."""
    embedding_losses: Tensor
    """Of each iteration of stage 1."""
    model_losses: Tensor
    """Of each iteration of stage 2."""

    @classmethod
    @torch.inference_mode(mode=False)  # embedding and weights learn, whatever the caller's mode
    def fit(
        cls,
        model: StableDiffusion,
        inversion: Inversion,
        prompt: str,
        *,
        embedding_steps: int = EMBEDDING_STEPS,
        embedding_learning_rate: float = EMBEDDING_RATE,
        model_steps: int = MODEL_STEPS,
        model_learning_rate: float = MODEL_RATE,
        seed: int = 0,
        callback: Callback | None = None,
    ) -> "Imagic":
        """Learn the image: stages 1 and 2 of the paper (section 3.2).

        Stage 1 optimises the prompt's embedding so that the noise of the image is predicted. Stage
        2 trains all weights of a copy of the UNet by the same loss with that embedding. In float32
        stage 2 takes 16 bytes for each of them: weight, gradient and Adam's two moments. Those are
        12.8 GiB for Stable Diffusion v1's 859,520,964, beside the model itself and one pass's
        activations. What is fitted keeps a quarter of it.

        Args:
            model: the model that the inversion was made with.
            inversion: of the image, by any method: of it z_0 and the number of steps are taken.
            prompt: what the image shall show.
            embedding_steps: iterations of stage 1.
            embedding_learning_rate: of its Adam.
            model_steps: iterations of stage 2.
            model_learning_rate: of its Adam.
            seed: of timesteps and noise, which are drawn on the CPU.
            callback: called with (iterations done, of both stages); see `nti.errors.Callback`.

        Raises:
            ValueError: an inversion of another model, or settings that do not fit.
            NotFiniteError: embeddings or losses that overflow.
            Stopped: by the callback.

        """
        check_objects(model, inversion)
        target = model.encode_text([a_text("prompt", prompt)])
        first = a_whole_number("embedding_steps", embedding_steps, 0)
        second = a_whole_number("model_steps", model_steps, 0)
        rates = (
            a_number("embedding_learning_rate", embedding_learning_rate, 0),
            a_number("model_learning_rate", model_learning_rate, 0),
        )
        generator = torch.Generator().manual_seed(a_whole_number("seed", seed, 0, LARGEST_SEED))
        a_callable("callback", callback)
        latent = inversion.pivot[-1:].to(model.device, model.state_dtype, copy=True)
        schedule = all_timesteps(model)
        optimized, embedding_losses = target, latent.new_zeros(1, 0)
        if first:
            drawn = torch.randint(schedule.steps, (first,), generator=generator).tolist()
            optimized, embedding_losses = match_noise(
                model.steps, latent, target, target, schedule, drawn, weight=0.0,
                learning_rate=rates[0], generator=generator,
                callback=lambda done, _: report(callback, done, first + second),
            )  # fmt: skip
        unet, model_losses = fine_tune(
            model, latent, optimized, learns=lambda name: True, iterations=second,
            learning_rate=rates[1], batch=1, generator=generator,
            callback=lambda done, _: report(callback, first + done, first + second),
        )  # fmt: skip
        return cls(
            with_unet(model, unet), latent, inversion.steps, target, optimized,
            embedding_losses[0], model_losses,
        )  # fmt: skip

    def edit(
        self,
        eta: float | Sequence[float] = ETA,
        *,
        guidance_scale: float = W,
        seed: int = 0,
        callback: Callback | None = None,
    ) -> EditResult:
        """Sample with e = eta e_tgt + (1 - eta) e_opt (stage 3, eq. 3).

        Args:
            eta: 0 gives the image, 1 the prompt; more goes beyond it. One for each edit, or one.
            guidance_scale: w.
            seed: of z_T, which all edits share. It is drawn on the CPU.
            callback: called with (steps done, steps in all); see `nti.errors.Callback`.

        Raises:
            ValueError: numbers that do not fit.
            NotFiniteError: latents that overflow.
            Stopped: by the callback.

        """
        edited = self.edit_latents(eta, guidance_scale=guidance_scale, seed=seed, callback=callback)
        return decoded(self.model, edited)

    @torch.no_grad()
    def edit_latents(
        self,
        eta: float | Sequence[float] = ETA,
        *,
        guidance_scale: float = W,
        seed: int = 0,
        callback: Callback | None = None,
    ) -> EditedLatents:
        """Sample as `edit` does, which decodes this; arguments and errors are the same."""
        etas = [a_number("eta", each) for each in (eta if isinstance(eta, Sequence) else [eta])]
        if not etas:
            raise ValueError("eta: got none, expected a number or more")
        w = a_number("guidance_scale", guidance_scale)
        generator = torch.Generator().manual_seed(a_whole_number("seed", seed, 0, LARGEST_SEED))
        a_callable("callback", callback)
        (noise,) = draw(generator, 1, self.latent)
        null = self.model.encode_text([""])
        latents = sample(
            self.model.steps,
            noise.expand(len(etas), -1, -1, -1),
            torch.cat([torch.lerp(self.optimized, self.target, each) for each in etas]),
            null.expand(self.steps, len(etas), -1, -1),
            self.model.schedule(self.steps),
            w,
            callback=callback,
        )
        return EditedLatents(latents, self.latent, None)


def imagic(
    model: StableDiffusion,
    inversion: Inversion,
    prompts: str | Sequence[str],
    *,
    eta: float = ETA,
    guidance_scale: float = W,
    embedding_steps: int = EMBEDDING_STEPS,
    embedding_learning_rate: float = EMBEDDING_RATE,
    model_steps: int = MODEL_STEPS,
    model_learning_rate: float = MODEL_RATE,
    seed: int = 0,
    callback: Callback | None = None,
) -> EditResult:
    """Edit an inverted image by Imagic (arXiv 2210.09276): fit, then sample, for each prompt.

    Each prompt has an embedding and a copy of the UNet of its own, one after the other. `Imagic`
    keeps them, so that other `eta` and seeds cost no more than sampling; its `fit` says what memory
    they take.

    Args:
        model: the model that the inversion was made with.
        inversion: of the image, by any method.
        prompts: E edited prompts, or one.
        eta: see `Imagic.edit`.
        guidance_scale: see there.
        embedding_steps: see `Imagic.fit`.
        embedding_learning_rate: see there.
        model_steps: see there.
        model_learning_rate: see there.
        seed: of what is drawn in training, and of z_T.
        callback: called with (iterations and steps done, in all); see `nti.errors.Callback`.

    Raises:
        ValueError: an inversion of another model, or settings that do not fit.
        NotFiniteError: what overflows.
        Stopped: by the callback.

    """
    check_objects(model, inversion)
    prompts = texts("prompts", prompts)
    if not prompts:
        raise ValueError("prompts: got none, expected one edited prompt or more")
    a_number("eta", eta)
    a_number("guidance_scale", guidance_scale)
    a_callable("callback", callback)
    trained = a_whole_number("embedding_steps", embedding_steps, 0)
    trained += a_whole_number("model_steps", model_steps, 0)
    each = trained + inversion.steps
    found: list[EditedLatents] = []

    def told(done: int, _: int) -> None:
        report(callback, len(found) * each + done, len(prompts) * each)

    for prompt in prompts:
        fitted = Imagic.fit(
            model, inversion, prompt, embedding_steps=embedding_steps,
            embedding_learning_rate=embedding_learning_rate, model_steps=model_steps,
            model_learning_rate=model_learning_rate, seed=seed, callback=told,
        )  # fmt: skip
        found.append(
            fitted.edit_latents(
                eta, guidance_scale=guidance_scale, seed=seed,
                callback=lambda done, total: told(trained + done, total),
            )
        )  # fmt: skip
        del fitted  # or two copies of the UNet were there at once
    latents = torch.cat([edited.latents for edited in found], dim=1)
    return decoded(model, EditedLatents(latents, found[0].source, None))
