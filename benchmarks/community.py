"""Section `community`: an inversion against diffusers' community pipeline, `NullTextPipeline`.

The pipeline is no part of diffusers' package: `--community` names its file,
`examples/community/pipeline_null_text_inversion.py` of diffusers' repository. It runs as it comes,
its weights trainable, on the weights of our UNet; image and caption are encoded by our networks on
both sides. Both invert a sample image with the embedded model, and an image at Stable Diffusion
v1's size, on random weights, through one timestep of ten inner iterations.
"""

import contextlib
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
from inversions import psnr_from_pivot
from nti import Inversion, invert, load_model
from nti.config import ModelConfig, ScheduleConfig
from nti.demo import sample_captions, sample_image
from nti.image import load_image
from nti.model import StableDiffusion
from peers import diffusers_unet
from rows import Row, make_row
from timing import interleaved

__all__ = ["community"]

PROVIDER = "NullTextPipeline"
W, INNER_STEPS, THRESHOLD = 7.5, 10, 1e-5
"""What the pipeline fixes, and the published early stop."""


class Community:
    """The pipeline on a model's weights."""

    def __init__(self, file: Path, model: StableDiffusion) -> None:
        """`file` is the pipeline's. Raises ValueError where it holds none."""
        self.model = model
        self.pipeline = _pipeline_class(file)(
            vae=None, text_encoder=None, tokenizer=None, safety_checker=None,
            feature_extractor=None, requires_safety_checker=False,
            # As `from_pretrained` leaves them, and the pipeline does not change it.
            unet=diffusers_unet(model.unet).requires_grad_(True),
            scheduler=_scheduler(model.config.schedule),
        )  # fmt: skip
        self.pipeline.image2latent = self._latent
        self.pipeline.get_context = self._context

    def _latent(self, image: str) -> Tensor:
        size = self.model.config.image_size
        return self.model.encode_image(load_image(image, size))

    def _context(self, prompt: str) -> Tensor:
        return self.model.encode_text(["", prompt])

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


def _pipeline_class(file: Path) -> Callable[..., Any]:
    spec = util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise ValueError(f"--community: got {file}, expected diffusers' {PROVIDER}, a Python file")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, PROVIDER):
        raise ValueError(f"--community: got {file}, expected a file that defines {PROVIDER}")
    found: Callable[..., Any] = getattr(module, PROVIDER)
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
    file: Path,
    config: ModelConfig,
    sides: Sequence[int],
    repeats: int,
    steps: int,
    device: torch.device,
) -> Iterator[list[Row]]:
    """Time both pipelines, in float32."""
    model = load_model(device=device, dtype=torch.float32)
    rows, records = _both(Community(file, model), "embedded model", repeats, steps, THRESHOLD)
    yield [
        replace(row, quality=round(psnr_from_pivot(model, record), 2), unit="dB from the pivot")
        for row, record in zip(rows, records, strict=True)
    ]
    for side in sides:
        sized = replace(config, image_size=side)
        random = random_model(sized, torch.float32, device, whole=True)
        # No loss is negative: all iterations are made.
        rows, records = _both(
            Community(file, random), f"{config.unet.channels} channels", repeats, 1, -1.0
        )
        yield rows


def _both(
    community: Community, name: str, repeats: int, steps: int, threshold: float
) -> tuple[list[Row], list[Inversion]]:
    """Invert a sample image; return a row and a record each. RuntimeError where they differ."""
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
    record: Inversion = last["nti"]
    z_T, uncond = (x.cpu() for x in last[PROVIDER])
    their_record = replace(record, uncond=uncond[:, 0], pivot=torch.cat([z_T, record.pivot[1:]]))
    moved = record.uncond - model.encode_text([""]).cpu()
    error = float((their_record.uncond - record.uncond).norm() / moved.norm())
    if error > 1e-2:
        raise RuntimeError(
            f"community: the embeddings differ by {error:.1e} of the way that they went"
        )
    case = f"{name}, {model.config.image_size} px, {steps} steps of {INNER_STEPS} iterations"
    rows = [
        make_row(
            "community", provider, case, dtype=model.dtype, milliseconds=milliseconds,
            quality=error if provider == "nti" else 0.0,
            unit="between the embeddings, of how far they moved" if provider == "nti" else "",
        )
        for provider, milliseconds in times.items()
    ]  # fmt: skip
    return rows, [their_record, record]
