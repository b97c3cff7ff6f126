"""Exported functions in the place of a model's own: the algorithms run on them as they are."""

from torch import Tensor

from nti.execution.steps import Steps
from nti.export.exported import Exported
from nti.export.manifest import ExportError
from nti.model import StableDiffusion
from nti.networks.control import AttentionControl
from nti.sampling.schedule import StepCoefficients
from nti.sampling.step import AdamState, IterationInputs, IterationResult

__all__ = ["with_exported"]


def with_exported(model: StableDiffusion, exported: Exported) -> StableDiffusion:
    """Return a model whose steps are the exported ones; text encoder and autoencoder are its own.

    It takes the shapes of the export alone: B images of its size at once, and E edits.

    Args:
        model: the one that was exported.
        exported: of it.

    Raises:
        ExportError: an export of another model.

    """
    if differing := exported.fingerprint.differing(model.fingerprint):
        raise ExportError(
            f"model: got {model.config.name} with another {' and '.join(differing)}, expected"
            f" {exported.manifest.model_name} as it was exported"
        )

    def noise(latent: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        return exported("noise", latent, timestep, context)[0]

    def guided_step(
        latent: Tensor,
        timestep: Tensor,
        uncond: Tensor,
        cond: Tensor,
        coefficients: StepCoefficients,
        guidance_scale: Tensor,
    ) -> Tensor:
        c = coefficients.to(latent)
        inputs = (latent, timestep, uncond, cond, c.latent, c.eps, guidance_scale)
        return exported("guided", *inputs)[0]

    def controlled_noise(
        latent: Tensor, timestep: Tensor, context: Tensor, control: AttentionControl | None
    ) -> tuple[Tensor, Tensor | None]:
        # `one_layout` has every step controlled, and ask for words.
        assert control is not None and control.fold is not None
        assert control.self_rows is not None and control.words is not None
        fold = control.fold
        eps, maps = exported(
            "controlled", latent, timestep, context, fold.source_mix, fold.own_mix,
            fold.source_rows, control.self_rows, control.words,
        )  # fmt: skip
        return eps, maps

    def iteration(x: IterationInputs) -> IterationResult:
        c = x.coefficients.to(x.latent)
        uncond, mean, square, count, losses, reached = exported(
            "iteration", x.uncond, x.adam.mean, x.adam.square, x.adam.count, x.active, x.latent,
            x.timestep, x.eps_cond, x.target, c.latent, c.eps, x.guidance_scale, x.learning_rate,
        )  # fmt: skip
        return IterationResult(uncond, AdamState(mean, square, count), losses, reached)

    steps = Steps(
        unet=model.unet,
        noise=noise,
        guided_step=guided_step,
        controlled_noise=controlled_noise,
        null_text_iteration=iteration,
        execution="exported",
        one_layout=True,
    )
    parts = (model.config, model.unet, model.vae, model.text, model.tokenizer)
    return StableDiffusion(*parts, steps)
