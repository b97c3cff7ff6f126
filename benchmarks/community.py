"""Section `community`: null-text inversion by diffusers' community pipeline, `NullTextPipeline`.

The pipeline is no part of diffusers' package: `--community` names its file,
`examples/community/pipeline_null_text_inversion.py` of diffusers' repository. It runs on our UNet's
weights, which it leaves trainable, and our networks encode image and caption for both sides. Both
invert a sample image with the embedded model, and, at Stable Diffusion v1's size on random weights,
go through one timestep of ten inner iterations: encoding, one step of DDIM inversion, the
iterations and one guided step.
"""

import contextlib
import gc
import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib import util
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from cases import random_model
from inversions import decoded_pivot, image_psnr
from nti import Inversion, invert, load_model, reconstruct
from nti.config import ModelConfig, ScheduleConfig
from nti.demo import sample_captions, sample_image
from nti.image import load_image
from nti.model import StableDiffusion
from peers import diffusers_unet
from rows import Row, make_row
from timing import interleaved

__all__ = ["PROVIDER", "THRESHOLD", "Community", "Pipeline", "community", "pipeline_class"]

PROVIDER = "NullTextPipeline"
W, INNER_STEPS, THRESHOLD = 7.5, 10, 1e-5
"""What the pipeline fixes, and the published early stop."""

Pipeline = Callable[..., Any]
"""The pipeline's class."""


def pipeline_class(file: Path) -> Pipeline:
    """Return the pipeline that a file defines; ValueError where it defines none."""
    spec = util.spec_from_file_location(file.stem, file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise ValueError(f"--community: got {file}, expected diffusers' {PROVIDER}, a Python file")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, PROVIDER):
        raise ValueError(f"--community: got {file}, expected a file that defines {PROVIDER}")

    class Encoded(getattr(module, PROVIDER)):  # type: ignore[misc]
        """The pipeline, for which our networks encode image and caption."""

        def image2latent(self, image: str) -> Tensor:
            pixels = load_image(image, self.encoders.config.image_size)
            return self.encoders.encode_image(pixels)

        def get_context(self, prompt: str) -> Tensor:
            return self.encoders.encode_text(["", prompt])

    return Encoded


class Community:
    """The pipeline on a model's weights."""

    def __init__(self, pipeline: Pipeline, model: StableDiffusion) -> None:
        self.model = model
        self.pipeline = pipeline(
            vae=None, text_encoder=None, tokenizer=None, safety_checker=None,
            feature_extractor=None, requires_safety_checker=False,
            # As `from_pretrained` leaves them, and the pipeline does not change it.
            unet=diffusers_unet(model.unet).requires_grad_(True),
            scheduler=_scheduler(model.config.schedule),
        )  # fmt: skip
        self.pipeline.encoders = model

    def invert(self, image: Path, prompt: str, steps: int, threshold: float) -> tuple[Tensor, ...]:
        """Return z_T (1, 4, h, w) and the null embeddings (T, 1, 77, C)."""
        # Beside the image the pipeline leaves a file, and reads it the next time instead.
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            copy = Path(folder) / image.name
            copy.write_bytes(image.read_bytes())
            found: tuple[Tensor, ...] = self.pipeline.invert(
                str(copy), prompt, INNER_STEPS, threshold, steps
            )
        return found


def _scheduler(config: ScheduleConfig) -> DDIMScheduler:
    return DDIMScheduler(
        num_train_timesteps=config.train_steps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def community(
    pipeline: Pipeline,
    config: ModelConfig,
    sides: Sequence[int],
    repeats: int,
    steps: int,
    device: torch.device,
) -> Iterator[list[Row]]:
    """Time both, in float32; RuntimeError where their embeddings differ."""
    model = load_model(device=device, dtype=torch.float32)
    case = f"embedded model, {steps} steps"
    yield _both(Community(pipeline, model), case, repeats, steps, THRESHOLD)
    for side in sides:
        gc.collect()  # the pipeline before this one, with a gradient for every weight
        model = random_model(replace(config, image_size=side), torch.float32, device, whole=True)
        case = f"{config.unet.channels} channels, {side} px, one timestep"
        # No loss is below zero: every iteration is made.
        yield _both(Community(pipeline, model), case, repeats, 1, -1.0)


def _both(community: Community, case: str, repeats: int, steps: int, threshold: float) -> list[Row]:
    model = community.model
    sample, prompt = next(iter(sample_captions().items()))
    image = sample_image(sample)
    last: dict[str, Any] = {}

    def theirs() -> None:
        last[PROVIDER] = community.invert(image, prompt, steps, threshold)

    def ours() -> None:
        last["nti"] = invert(
            model, str(image), prompt, steps=steps, guidance_scale=W, inner_steps=INNER_STEPS,
            threshold=lambda i, _: threshold + i * 2e-5,
            learning_rate=lambda i, _: 1e-2 * (1.0 - i / 100.0),
        )  # fmt: skip

    times = interleaved({PROVIDER: theirs, "nti": ours}, repeats, warmup=0)
    inversion: Inversion = last["nti"]
    z_T, uncond = (x.cpu() for x in last[PROVIDER])
    moved = inversion.uncond - model.encode_text([""]).cpu()
    error = float((uncond[:, 0] - inversion.uncond).norm() / moved.norm())
    if error > 1e-2:
        raise RuntimeError(
            f"community: the embeddings differ by {error:.1e} of the way that they went"
        )
    inversions = {
        PROVIDER: replace(
            inversion, uncond=uncond[:, 0], pivot=torch.cat([z_T, inversion.pivot[1:]])
        ),
        "nti": inversion,
    }
    quality, unit = dict.fromkeys(times, error), "between the embeddings' changes"
    if threshold > 0:  # of random weights no picture comes
        bound, unit = decoded_pivot(model, inversion), "dB from the decoded pivot"
        quality = {name: image_psnr(bound, reconstruct(model, inversions[name])) for name in times}
    return [
        make_row(
            "community", provider, case, dtype=model.dtype, milliseconds=times[provider],
            quality=quality[provider], unit=unit,
        )
        for provider in times
    ]  # fmt: skip
