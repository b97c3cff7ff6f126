"""`invert`: an image and its caption to an `Inversion`; the same for many."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from nti.errors import BatchError, Callback, NotFiniteError
from nti.image import ImageLike
from nti.inversion.inversion import Inversion
from nti.inversion.invert_latent import invert_latent
from nti.inversion.null_text import Rule, published_learning_rate, published_threshold
from nti.inversion.provenance import Provenance, describe_versions, digest
from nti.inversion.settings import InversionSettings
from nti.inversion.source import Size, Source, read_sources, stacked
from nti.inversion.state import InversionState, StateFile, Watch
from nti.model import StableDiffusion

__all__ = ["InversionSettings", "Size", "invert", "invert_batch"]


def invert(
    model: StableDiffusion,
    image: ImageLike,
    prompt: str,
    *,
    size: Size | None = None,
    fit: str = "crop",
    steps: int = 50,
    guidance_scale: float | None = None,
    inner_steps: int = 10,
    method: str = "null-text",
    noise_at: str = "target",
    learning_rate: Rule = published_learning_rate,
    threshold: Rule = published_threshold,
    pivot: str = "ddim",
    pivot_iterations: int = 5,
    seed: int = 0,
    towards_null: float | None = None,
    pull_share: float = 1.0,
    pull_every: int = 1,
    callback: Callback | None = None,
    watch: Watch | None = None,
    state: StateFile | None = None,
) -> Inversion:
    """Invert an image (null-text inversion, arXiv 2211.09794, Algorithm 1).

    Args:
        model: the model.
        image: a path, a file's bytes, a PIL image, a NumPy array, or a tensor (3, H, W) or
            (1, 3, H, W) in [-1, 1].
        prompt: what the image shows.
        size: in pixels; None: the square that the model was trained at. A tensor is taken as is.
        fit: how an image of another shape is brought to it: `crop` keeps its middle, `pad` all of
            it and continues its edges, `stretch` changes its shape.
        steps: see `InversionSettings`, as for all that follow.
        guidance_scale: see there.
        inner_steps: see there.
        method: see there.
        noise_at: see there.
        learning_rate: see there.
        threshold: see there.
        pivot: see there.
        pivot_iterations: see there.
        seed: see there.
        towards_null: see there.
        pull_share: see there.
        pull_every: see there.
        callback: called with (steps done, 2 T) after each timestep of the pivot and of what follows
            it; see `nti.errors.Callback`.
        watch: told the `InversionState` after every step and every inner iteration.
        state: keeps the run's state in a file, and goes on from what a run of the same inversion
            has left there. Remove it once the inversion is saved.

    Returns:
        The inversion, its tensors on the CPU.

    Raises:
        ValueError: an image, number or method that cannot be.
        StateFileError: a state of another run.
        NotFiniteError: latents that overflow.
        Stopped: by the callback.

    """
    settings = InversionSettings(
        steps, guidance_scale, inner_steps, method, noise_at, learning_rate, threshold, pivot,
        pivot_iterations, seed, towards_null, pull_share, pull_every,
    )  # fmt: skip
    (made,) = invert_batch(
        model, [image], [prompt], settings, size=size, fit=fit, callback=callback, watch=watch,
        state=state,
    )  # fmt: skip
    return made


def invert_batch(
    model: StableDiffusion,
    images: Sequence[ImageLike],
    prompts: Sequence[str],
    settings: InversionSettings | None = None,
    *,
    size: Size | None = None,
    fit: str = "crop",
    callback: Callback | None = None,
    watch: Watch | None = None,
    state: StateFile | None = None,
) -> list[Inversion]:
    """Invert many images at once; what comes back is what inverting them one by one gives.

    Each image has its own embedding, optimizer and early stop.

    Args:
        model: the model.
        images: of which each may be what `invert` takes; they come to one size.
        prompts: what each shows.
        settings: of all; None: the defaults.
        size: see `invert`.
        fit: see `invert`.
        callback: see `invert`.
        watch: see `invert`.
        state: see `invert`.

    Raises:
        ValueError: images and prompts of different number, or of sizes that differ; and whatever
        `invert` raises, where there is one image.
        BatchError: some of many images cannot be read, or their latents overflow. It is raised
        once the others are inverted, and holds them.

    """
    if isinstance(images, str) or isinstance(prompts, str) or len(images) != len(prompts):
        raise ValueError(
            f"invert_batch: got {_counted(images)} images and {_counted(prompts)} prompts, expected"
            " two lists of the same length; for one image use invert"
        )
    if not images:
        raise ValueError("invert_batch: got no image, expected one at least")
    model.check_takes_latents_alone("invert")
    settings = settings or InversionSettings()
    sources, errors = read_sources(model, images, prompts, size, fit)
    results: list[Inversion | None] = [None] * len(images)
    if sources:
        try:
            found = _invert_sources(model, list(sources.values()), settings, callback, watch, state)
        except NotFiniteError as error:  # not one image could be inverted
            found = [error] * len(sources)
        for number, made in zip(sources, found, strict=True):
            if isinstance(made, Inversion):
                results[number] = made
            else:
                errors[number] = made
    if errors and len(images) == 1:
        raise errors[0]
    if errors:
        raise BatchError(results, errors)
    return [made for made in results if made is not None]


def _invert_sources(
    model: StableDiffusion,
    sources: Sequence[Source],
    settings: InversionSettings,
    callback: Callback | None,
    watch: Watch | None,
    state: StateFile | None,
) -> list[Inversion | NotFiniteError]:
    latent = model.encode_image(stacked([source.pixels for source in sources]))
    prompts = [source.prompt for source in sources]
    table, versions = settings.table(model), describe_versions(model)
    with _kept(state, watch, lambda: _request(model, sources, latent, table)) as (start, told):
        made = invert_latent(
            model, latent, prompts, settings, callback=callback, watch=told, state=start
        )
    found = made.source
    finite = (
        found.latents.isfinite().flatten(2).all(dim=2).all(dim=0)
        & made.pivot.isfinite().flatten(2).all(dim=2).all(dim=0)
    ).tolist()
    results: list[Inversion | NotFiniteError] = []
    # Copies, not views: one inversion must not keep the whole batch's memory.
    for i, source in enumerate(sources):
        if not finite[i]:
            results.append(NotFiniteError(f"latents that are not finite, in {model.dtype}"))
            continue
        results.append(
            Inversion(
                prompt=source.prompt,
                method=settings.method,
                guidance_scale=made.guidance_scale,
                model_name=model.config.name,
                uncond=_own(found.uncond[:, i]),
                pivot=_own(made.pivot[:, i]),
                latents=_own(found.latents[:, i]),
                losses=_own(found.losses[:, i]),
                cond=None if found.cond is None else _own(found.cond[:, i]),
                offsets=None if found.offsets is None else _own(found.offsets[:, i]),
                placement=source.placement,
                made=Provenance(source.sha256, table, versions),
                weights=model.fingerprint,
            )
        )
    return results


@contextmanager
def _kept(
    state: StateFile | None, watch: Watch | None, request: Callable[[], dict[str, Any]]
) -> Iterator[tuple[InversionState | None, Watch | None]]:
    """Give the state to go on from, and whom to tell of new ones."""
    if state is None:
        yield None, watch
        return

    def told(now: InversionState) -> None:
        state.keep(now)
        if watch is not None:
            watch(now)

    with state.running(request()) as start:
        yield start, told


def _request(
    model: StableDiffusion, sources: Sequence[Source], latent: Tensor, table: Mapping[str, Any]
) -> dict[str, Any]:
    """All that the result depends on, by name."""
    weights = {name: digest(values) for name, values in model.fingerprint.samples.items()}
    return {
        "prompt": [source.prompt for source in sources],
        "image_sha256": [source.sha256 for source in sources],
        "latent_sha256": digest(latent),  # of size, fit and autoencoder, too
        **table,
        **describe_versions(model),
        **{f"weights_{name}": found for name, found in weights.items()},
        "networks": model.fingerprint.numbers,
    }


def _counted(values: Sequence[object] | str) -> str:
    return f"one string {values!r} of" if isinstance(values, str) else str(len(values))


def _own(values: Tensor) -> Tensor:
    """Return a copy on the CPU, on memory that holds nothing else."""
    return values.to("cpu", copy=True, memory_format=torch.contiguous_format)
