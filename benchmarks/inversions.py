"""Section `inversion`: the whole of it, by images a batch: seconds an image, and how well it comes
back.

With the embedded model, whose weights are real; on CUDA with random weights at Stable Diffusion
v1's size as well, where only the time means something.
"""

from collections.abc import Iterator
from statistics import mean

import torch
from PIL.Image import Image

from cases import random_model
from nti import Inversion, InversionSettings, invert_batch, load_model, reconstruct
from nti.config import SD_V1
from nti.demo import psnr, sample_captions, sample_image
from nti.image import load_image, to_pil
from nti.model import StableDiffusion
from roofline import inversion_tflop
from rows import Row, make_row
from timing import interleaved, own_peak_mib

__all__ = ["decoded_pivot", "image_psnr", "inversions"]


def inversions(
    repeats: int, steps: int, dtype: torch.dtype, device: torch.device
) -> Iterator[list[Row]]:
    """Invert batches of the package's sample images, in float32 and in `dtype`."""
    if device.type == "cuda":
        model = random_model(SD_V1, torch.float16, device, whole=True)
        for batch in (1, 4):
            # Of its own, so that a batch's peak is without the graphs of the one before it.
            graphs = model.with_execution("cuda-graph")
            name = "random weights of Stable Diffusion v1, 512 px"
            yield _by_batch(graphs, name, (batch,), 1, steps)[0]
    exact = None
    for each in dict.fromkeys((torch.float32, dtype)):
        execution = "cuda-graph" if device.type == "cuda" else "eager"
        model = load_model(device=device, dtype=each, execution=execution)
        rows, image = _by_batch(model, "embedded model", (1, 2, 6), repeats, steps, exact)
        exact = exact or image
        yield rows


def _by_batch(
    model: StableDiffusion,
    name: str,
    batches: tuple[int, ...],
    repeats: int,
    steps: int,
    exact: Image | None = None,
) -> tuple[list[Row], Image]:
    """Return the rows, and the first image as it comes back; `exact` is that image in float32."""
    captions = list(sample_captions().items())
    made: dict[int, list[Inversion]] = {}

    def run(batch: int) -> None:
        some = [captions[i % len(captions)] for i in range(batch)]
        images = [str(sample_image(sample)) for sample, _ in some]
        settings = InversionSettings(steps=steps)
        made[batch] = invert_batch(model, images, [caption for _, caption in some], settings)

    warmup = int(model.device.type == "cuda")  # the graphs are captured then
    if warmup:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    times = interleaved({str(b): lambda b=b: run(b) for b in batches}, repeats, warmup=warmup)
    peak = own_peak_mib() if warmup and len(batches) == 1 else 0.0
    rows, images = [], []
    for batch in batches:
        first = made[batch][0]
        images.append(reconstruct(model, first))
        bound, unit = exact, "dB from float32's image"
        if bound is None:
            bound, unit = decoded_pivot(model, first), "dB from the decoded pivot"
        iterations = mean(int((~each.losses.isnan()).sum()) for each in made[batch])
        rows.append(
            make_row(
                "inversion", "nti", f"{name}, batch {batch}, {steps} steps", dtype=model.dtype,
                milliseconds=[t / batch for t in times[str(batch)]], peak_mib=peak,
                quality=image_psnr(bound, images[-1]), unit=f"{unit}, first image",
                tflop=inversion_tflop(model.config, model.config.image_size, steps, iterations),
            )
        )  # fmt: skip
    return rows, images[0]


def decoded_pivot(model: StableDiffusion, inversion: Inversion) -> Image:
    """Return what the autoencoder makes of z_0: the bound of any reconstruction."""
    return to_pil(model.decode_latent(inversion.pivot[-1:].to(model.device)))[0]


def image_psnr(a: Image, b: Image) -> float:
    """Return the PSNR of two images in dB."""
    return psnr(load_image(a, a.width), load_image(b, b.width))
