"""`nti demo`: sample images inverted, reconstructed and edited, on one labelled sheet."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from nti.contact_sheet import contact_sheet
from nti.editing.attention_grid import token_cells
from nti.editing.attention_maps import average_attention
from nti.editing.prompt_to_prompt import edit
from nti.errors import Callback
from nti.evaluation.captions import captioner_of
from nti.files import write_picture
from nti.image import load_image, open_image, psnr, to_pil
from nti.inversion.inversion import Inversion
from nti.inversion.invert import InversionSettings, invert_batch
from nti.inversion.sampling import sample
from nti.model import StableDiffusion

__all__ = ["psnr", "run_demo", "sample_captions", "sample_image"]


@dataclass(frozen=True)
class DemoEdit:
    """One edit of a sample: the new prompt, its label and what `nti.edit` is told."""

    label: str
    prompt: str
    cross_replace: float = 0.8
    self_replace: float = 0.5
    blend: tuple[str, str] | None = None
    advice: str = ""
    """What to do where such an edit fails."""


@dataclass(frozen=True)
class DemoStrip:
    """One edit with a word of it weighed by several factors."""

    prompt: str
    word: str
    factors: tuple[float, ...]


@dataclass(frozen=True)
class DemoSample:
    """A held-out sample, its edits, and what is shown of its words' weights."""

    name: str
    edits: tuple[DemoEdit, ...]
    strip: DemoStrip | None = None
    looks: bool = False
    """Whether its words' attention is shown."""


SAMPLES = (
    DemoSample(
        "purple-circle",
        (
            DemoEdit("colour", "a green circle on snow"),
            DemoEdit("shape", "a purple heart on snow", cross_replace=0.2, self_replace=0.1),
            DemoEdit("added pattern", "a striped purple circle on snow"),
            DemoEdit(
                "background",
                "a purple circle on grass",
                cross_replace=0.0,
                self_replace=0.0,
                advice="backgrounds are the weakest edits of this model. Where one does not change,"
                " `nti invert --method edit-friendly` changes it at the price of the objects, and"
                " `nti edit --editor masked --mask FILE --strength 0.9` keeps them",
            ),
        ),
        strip=DemoStrip("a striped purple circle on snow", "striped", (-1.0, 0.0, 0.5, 1.0, 2.0)),
    ),
    DemoSample(
        "circle-and-star",
        (
            DemoEdit("left colour", "a yellow circle and a blue star on wood"),
            DemoEdit(
                "left colour, local blend",
                "a yellow circle and a blue star on wood",
                blend=("circle", "circle"),
            ),
            DemoEdit(
                "right shape, local blend",
                "a red circle and a blue heart on wood",
                cross_replace=0.2,
                self_replace=0.1,
                blend=("star", "heart"),
            ),
            DemoEdit(
                "right pattern, local blend",
                "a red circle and a dotted blue star on wood",
                blend=("star", "star"),
            ),
        ),
        looks=True,
    ),
)


METHOD = "null-text-fast"
"""Of the inversions: a fifth of the published work, for pictures that look the same."""

Progress = Callable[[str], AbstractContextManager[Callback]]
"""A label -> what shows how far a run is, while its callback is told."""


@contextmanager
def _silent(label: str) -> Iterator[Callback]:
    yield lambda done, total: None


def _samples() -> Path:
    return Path(str(resources.files("nti.weights_loader") / "samples"))


def sample_captions() -> dict[str, str]:
    """Return the caption of every sample image that comes with the package, by name."""
    captions: dict[str, str] = json.loads((_samples() / "captions.json").read_text("utf-8"))
    return captions


def sample_image(name: str) -> Path:
    """Return the path of a sample image."""
    return _samples() / f"{name}.png"


def run_demo(
    model: StableDiffusion,
    directory: Path,
    *,
    steps: int = 50,
    guidance_scale: float | None = None,
    progress: Progress = _silent,
    tell: Callable[[str], object] = print,
) -> None:
    """Invert and edit the samples; write images, inversions and `contact_sheet.png`.

    Tells the PSNR of plain DDIM inversion, of null-text inversion, and of the autoencoder, which
    bounds both. `progress` makes of a label what shows how far an inversion is. Raises ValueError
    for a model that is not the embedded one.
    """
    if model.config.vocabulary is None:
        raise ValueError(
            f"demo: got {model.config.name}, expected the embedded model, whose world the"
            f" samples show: leave --checkpoint out, or use `nti invert` on an image of your own"
        )
    directory.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    pictures = [open_image(sample_image(shown.name)) for shown in SAMPLES]
    captions = captioner_of()(pictures)  # all begins with pictures alone
    for shown, caption in zip(SAMPLES, captions, strict=True):
        tell(f"{shown.name}: the picture shows {caption}")
    settings = InversionSettings(steps=steps, guidance_scale=guidance_scale, method=METHOD)
    with progress("inverting both") as callback:
        inversions = invert_batch(model, pictures, captions, settings, callback=callback)
    rows: list[list[tuple[Image.Image, str]]] = []
    for shown, picture, inversion, (plain, again) in zip(
        SAMPLES, pictures, inversions, _sampled_again(model, inversions), strict=True
    ):
        inversion.save(directory / f"{shown.name}.nti.safetensors")
        source = load_image(picture, model.config.image_size)
        rows.append(
            _reconstructions(model, shown, source, inversion, plain, again, directory, tell)
        )
        rows.append(_edits(model, shown, inversion, directory, tell))
        if shown.strip is not None:
            rows.append(_strip(model, shown.strip, inversion))
        if shown.looks:
            rows.append(_attention(model, inversion))
    title = (
        f"nti demo: {model.config.name} model, {steps} steps, w = {inversions[0].guidance_scale:g}"
    )
    write_picture(contact_sheet(rows, title=title), directory / "contact_sheet.png")
    tell(f"wrote {directory / 'contact_sheet.png'} ({time.monotonic() - started:.0f} s)")


def _sampled_again(
    model: StableDiffusion, inversions: Sequence[Inversion]
) -> Iterator[tuple[Image.Image, Image.Image]]:
    """Sample all from their z_T in one batch, without and with what was optimized.

    The first picture of each pair is plain DDIM inversion's: psi("") at every timestep. The second
    is null-text inversion's.
    """
    device, dtype = model.device, model.state_dtype
    first = inversions[0]
    null = model.encode_text([""]).expand(first.steps, len(inversions), -1, -1)
    learned = torch.stack([each.uncond for each in inversions], dim=1).to(device, dtype)
    latents = sample(
        model.steps,
        torch.stack([each.pivot[0] for each in inversions]).repeat(2, 1, 1, 1).to(device, dtype),
        model.encode_text([each.prompt for each in inversions]).repeat(2, 1, 1),
        torch.cat([null, learned], dim=1),
        model.schedule(first.steps),
        first.guidance_scale,
    )
    images = to_pil(model.decode_latent(latents[-1]))
    return zip(images[: len(inversions)], images[len(inversions) :], strict=True)


def _reconstructions(
    model: StableDiffusion,
    shown: DemoSample,
    source: Tensor,
    inversion: Inversion,
    plain: Image.Image,
    again: Image.Image,
    directory: Path,
    tell: Callable[[str], object],
) -> list[tuple[Image.Image, str]]:
    """Return the source, the bound, and the pictures that were sampled again, with their PSNR."""
    w = inversion.guidance_scale
    bound = to_pil(model.decode_latent(model.encode_image(source)))[0]
    images = {
        "autoencoder": (bound, "autoencoder (the bound)"),
        "ddim": (plain, f"DDIM inversion, w = {w:g}"),
        "null-text": (again, f"null-text inversion, w = {w:g}"),
    }
    picture = to_pil(source)[0]
    write_picture(picture, directory / f"{shown.name}-source.png")
    cells = [(picture, f"source: {inversion.prompt}")]
    for name, (image, label) in images.items():
        decibels = psnr(load_image(image, model.config.image_size), source)
        tell(f"{shown.name}: {label}: {decibels:.1f} dB")
        write_picture(image, directory / f"{shown.name}-{name}.png")
        cells.append((image, f"{label}\n{decibels:.1f} dB"))
    return cells


def _edits(
    model: StableDiffusion,
    shown: DemoSample,
    inversion: Inversion,
    directory: Path,
    tell: Callable[[str], object],
) -> list[tuple[Image.Image, str]]:
    """Make all edits of a sample in one batch, as they share its source."""
    edits = shown.edits
    result = edit(
        model,
        inversion,
        [wanted.prompt for wanted in edits],
        cross_replace=[wanted.cross_replace for wanted in edits],
        self_replace=[wanted.self_replace for wanted in edits],
        blend=[wanted.blend for wanted in edits],
    )
    cells = []
    for number, (wanted, image) in enumerate(zip(edits, result.images, strict=True), 1):
        name = f"{shown.name}-edit-{number}.png"
        write_picture(image, directory / name)
        tell(f"{shown.name}: {wanted.label}: {wanted.prompt} -> {name}")
        if wanted.advice:
            tell(f"{shown.name}: {wanted.label}: {wanted.advice}")
        cells.append((image, f"{wanted.label}: {wanted.prompt}"))
    return cells


def _strip(
    model: StableDiffusion, strip: DemoStrip, inversion: Inversion
) -> list[tuple[Image.Image, str]]:
    """Weigh a word of an edit by each factor, all in one batch."""
    weights = [{strip.word: factor} for factor in strip.factors]
    result = edit(model, inversion, [strip.prompt] * len(weights), reweight=[*weights])
    return [
        (image, f"re-weighting: {strip.word} x {factor:g}")
        for image, factor in zip(result.images, strip.factors, strict=True)
    ]


def _attention(model: StableDiffusion, inversion: Inversion) -> list[tuple[Image.Image, str]]:
    """Where the caption's longer words look, averaged over all steps."""
    maps = average_attention(model, inversion)[0]
    cells = token_cells(model, inversion.prompt, maps, by_word=True)
    return [(image, f"attention: {text}") for image, text in cells if len(text.split()[0]) > 2][:5]
