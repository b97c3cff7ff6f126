"""Section `inversion`: the whole of it, by images a batch: seconds an image, and how well it comes
back.

With the embedded model, whose weights are real; on CUDA with random weights at Stable Diffusion
v1's size as well, where only the time means something.
"""

from collections.abc import Iterator
from statistics import mean

import torch
from torch import Tensor

from cases import random_model
from nti import Inversion, compile_model, invert, load_model, reconstruct
from nti.config import SD_V1
from nti.demo import sample_captions, sample_image
from nti.image import load_image
from nti.model import StableDiffusion
from rows import Row, make_row
from timing import interleaved, own_peak_mib

__all__ = ["inversions", "psnr_from_pivot"]


def inversions(repeats: int, steps: int, device: torch.device) -> Iterator[list[Row]]:
    """Invert batches of the package's sample images."""
    if device.type == "cuda":
        model = random_model(SD_V1, torch.float16, device, whole=True)
        graphs = compile_model(model, backend="cuda-graph")
        for batch in (1, 4):
            yield _by_batch(graphs, "Stable Diffusion v1, 512 px", (batch,), 1, steps)
    for dtype in [torch.float32] if device.type == "cpu" else [torch.float32, torch.float16]:
        model = load_model(device=device, dtype=dtype)
        yield _by_batch(model, "embedded model", (1, 2, 6), repeats, steps)


def _by_batch(
    model: StableDiffusion, name: str, batches: tuple[int, ...], repeats: int, steps: int
) -> list[Row]:
    captions = list(sample_captions().items())
    made: dict[int, list[Inversion]] = {}

    def run(batch: int) -> None:
        some = [captions[i % len(captions)] for i in range(batch)]
        images = [str(sample_image(sample)) for sample, _ in some]
        made[batch] = invert(model, images, [caption for _, caption in some], steps=steps)

    warmup = int(model.device.type == "cuda")  # the graphs are recorded then
    if warmup:
        torch.cuda.reset_peak_memory_stats()
    times = interleaved({str(b): lambda b=b: run(b) for b in batches}, repeats, warmup=warmup)
    peak = own_peak_mib() if warmup and len(batches) == 1 else 0.0
    rows = []
    for batch in batches:
        rows.append(
            make_row(
                "inversion", "nti", f"{name}, batch {batch}, {steps} steps", dtype=model.dtype,
                milliseconds=[t / batch for t in times[str(batch)]], peak_mib=peak,
                quality=mean(psnr_from_pivot(model, record) for record in made[batch][:1]),
                unit="dB from the decoded pivot, first image",
            )
        )  # fmt: skip
    return rows


def psnr_from_pivot(model: StableDiffusion, record: Inversion) -> float:
    """Return the reconstruction's PSNR against the decoded z_0, in pixels of peak 255."""
    bound = model.decode_latent(record.pivot[-1:].to(model.device))
    again = load_image(reconstruct(model, record), bound.shape[-1]).to(bound)
    error = (_rounded(bound) - _rounded(again)).square().mean()
    return float(10 * torch.log10(255.0**2 / error.clamp_min(1e-12)))


def _rounded(image: Tensor) -> Tensor:
    return ((image + 1) * 127.5).round()
