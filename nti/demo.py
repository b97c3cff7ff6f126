"""`nti demo`: sample images inverted, reconstructed and edited, on one labelled sheet."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from PIL import Image

from nti.contact_sheet import contact_sheet
from nti.editing.attention_grid import token_cells
from nti.editing.attention_maps import average_attention
from nti.editing.prompt_to_prompt import edit
from nti.errors import Callback
from nti.evaluation.captions import Captioner, captioner_of
from nti.files import write_picture
from nti.image import load_image, open_image, psnr, to_pil
from nti.inversion.inversion import Inversion
from nti.inversion.invert import invert
from nti.inversion.sampling import reconstruct, sample
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
            DemoEdit("background", "a purple circle on grass", cross_replace=0.0, self_replace=0.0),
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
    captioner = captioner_of()  # all begins with a picture alone
    started = time.monotonic()
    rows: list[list[tuple[Image.Image, str]]] = []
    for shown in SAMPLES:
        inversion, cells = _reconstructions(
            model, captioner, shown.name, directory, steps, guidance_scale, progress, tell
        )
        rows += [cells, _edits(model, shown, inversion, directory, tell)]
        if shown.strip is not None:
            rows.append(_strip(model, shown.strip, inversion))
        if shown.looks:
            rows.append(_attention(model, inversion))
    title = f"nti demo: {model.config.name} model, {steps} steps, w = {inversion.guidance_scale:g}"
    write_picture(contact_sheet(rows, title=title), directory / "contact_sheet.png")
    tell(f"wrote {directory / 'contact_sheet.png'} ({time.monotonic() - started:.0f} s)")


def _reconstructions(
    model: StableDiffusion,
    captioner: Captioner,
    name: str,
    directory: Path,
    steps: int,
    guidance_scale: float | None,
    progress: Progress,
    tell: Callable[[str], object],
) -> tuple[Inversion, list[tuple[Image.Image, str]]]:
    """Invert one sample; return it with labelled source, bound, DDIM and null-text images."""
    picture = open_image(sample_image(name))
    (caption,) = captioner([picture])
    tell(f"{name}: the picture shows {caption}")
    source = load_image(picture, model.config.image_size)
    with progress(f"inverting {name}") as callback:
        inversion = invert(
            model, source, caption, steps=steps, guidance_scale=guidance_scale, callback=callback
        )
    inversion.save(directory / f"{name}.nti.safetensors")
    w = inversion.guidance_scale
    images = {
        f"source: {caption}": to_pil(source)[0],
        "autoencoder (the bound)": to_pil(model.decode_latent(model.encode_image(source)))[0],
        f"DDIM inversion, w = {w:g}": plain_ddim(model, inversion),
        f"null-text inversion, w = {w:g}": reconstruct(model, inversion),
    }
    cells = []
    for label, image in images.items():
        if not label.startswith("source"):
            decibels = psnr(load_image(image, model.config.image_size), source)
            tell(f"{name}: {label}: {decibels:.1f} dB")
            label = f"{label}\n{decibels:.1f} dB"
        cells.append((image, label))
    for (image, _), kind in zip(cells, ("source", "autoencoder", "ddim", "null-text"), strict=True):
        write_picture(image, directory / f"{name}-{kind}.png")
    return inversion, cells


def plain_ddim(model: StableDiffusion, inversion: Inversion) -> Image.Image:
    """Sample from the same z_T with psi("") at every timestep: guidance without null-text."""
    latents = sample(
        model.steps,
        inversion.pivot[:1].to(model.device, model.state_dtype),
        model.encode_text([inversion.prompt]),
        model.encode_text([""]).expand(inversion.steps, 1, -1, -1),
        model.schedule(inversion.steps),
        inversion.guidance_scale,
    )
    return to_pil(model.decode_latent(latents[-1]))[0]


def _edits(
    model: StableDiffusion,
    shown: DemoSample,
    inversion: Inversion,
    directory: Path,
    tell: Callable[[str], object],
) -> list[tuple[Image.Image, str]]:
    cells = []
    for number, wanted in enumerate(shown.edits, 1):
        result = edit(
            model,
            inversion,
            wanted.prompt,
            cross_replace=wanted.cross_replace,
            self_replace=wanted.self_replace,
            blend=wanted.blend,
        )
        name = f"{shown.name}-edit-{number}.png"
        write_picture(result.images[0], directory / name)
        tell(f"{shown.name}: {wanted.label}: {wanted.prompt} -> {name}")
        cells.append((result.images[0], f"{wanted.label}: {wanted.prompt}"))
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
