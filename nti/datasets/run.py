"""`run_manifest`: every item of a manifest made, each kept as soon as it is there."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from nti.arguments import a_whole_number
from nti.config import ModelConfig
from nti.datasets.addresses import LocalFolder, is_remote, open_folder
from nti.datasets.batching import in_parts, measured_batch
from nti.datasets.check import Checked, check
from nti.datasets.fields import Given, edit_settings, invert_settings
from nti.datasets.item import Item, Manifest, ManifestError
from nti.datasets.results import Results, RunError
from nti.datasets.work import Captioner, Keep, Outcome, Work, failed, make, read_work
from nti.files import locked
from nti.inversion.provenance import describe_versions
from nti.inversion.source import fitted_size
from nti.inversion.state import StateFile
from nti.model import StableDiffusion

__all__ = ["Here", "Progress", "Summary", "run_manifest"]

LOCK, STATES = ".nti-run.lock", ".nti-states"


@dataclass(frozen=True)
class Summary:
    """How a run ended."""

    done: int
    """Items, those of earlier runs among them."""
    failed: int
    """Items and rows."""
    made: int
    """Items that this run has made."""
    seconds: float
    address: str


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    done: int
    failed: int
    total: int
    per_minute: float
    """Items that this run has made; 0 before the first one."""
    seconds_left: float


class Executor(Protocol):
    """Who makes items: this process, or workers of a cluster."""

    config: ModelConfig
    captioned: bool

    def describe(self) -> dict[str, Any]:
        """Return `model`, its name, digests of `weights` and `captioner`, and `computed`: versions
        and the device.
        """

    def measured_batch(self, given: Given) -> int:
        """Return how many images fit into memory at once."""

    def made(self, batches: Iterable[Sequence[Item]], keep: Keep) -> Iterator[list[Outcome]]:
        """Yield what became of each batch, in any order."""


class Here:
    """Makes items in this process."""

    def __init__(
        self,
        model: StableDiffusion,
        *,
        captioner: Captioner | None = None,
        output: str | Path | None = None,
    ) -> None:
        """Use a model.

        Args:
            model: the model.
            captioner: says what images without a caption show.
            output: of the run; where it is a folder of this machine, the state of an inversion
                that is under way is kept in it.

        """
        self.model, self.config, self.captioner = model, model.config, captioner
        self.captioned = captioner is not None
        local = output is not None and not is_remote(str(output))
        self._states = Path(str(output)) / STATES if local else None

    def describe(self) -> dict[str, Any]:
        """Return what results depend on beside settings."""
        digest = getattr(self.captioner, "digest", "given") if self.captioned else None
        return {**described(self.model), "captioner": digest}

    def measured_batch(self, given: Given, sharing: int = 1) -> int:
        """Return how many images fit into memory that so many processes share."""
        settings, places = invert_settings(given)
        return measured_batch(self.model, settings, places.get("size"), sharing=sharing)

    def made(self, batches: Iterable[Sequence[Item]], keep: Keep) -> Iterator[list[Outcome]]:
        """Yield what became of each batch, in order."""
        for batch in batches:
            state = self._state(batch)
            yield self.make([read_work(item) for item in batch], keep, state)
            if state is not None:  # once the results are written
                state.remove()

    def make(
        self, works: Sequence[Work], keep: Keep, state: StateFile | None = None
    ) -> list[Outcome]:
        """Return what became of a batch, made in parts where memory runs out."""
        run = partial(make, self.model, keep=keep, state=state, captioner=self.captioner)
        return in_parts(run, works)

    def _state(self, batch: Sequence[Item]) -> StateFile | None:
        settings, _ = invert_settings(batch[0].settings)
        if self._states is None or not settings.row.watched:
            return None
        self._states.mkdir(exist_ok=True)
        name = hashlib.sha256("".join(item.request for item in batch).encode()).hexdigest()
        return StateFile(self._states / f"{name[:24]}.state")


def described(model: StableDiffusion) -> dict[str, Any]:
    """Return what results depend on beside settings: the weights' digest, and what computes."""
    found = model.fingerprint
    told = hashlib.sha256(json.dumps(found.numbers, sort_keys=True, default=str).encode())
    for name in sorted(found.samples):
        told.update(repr(found.samples[name].tolist()).encode())
    return {
        "model": model.config.name,
        "weights": told.hexdigest()[:24],
        "computed": describe_versions(model),
    }


def run_manifest(
    manifest: Manifest,
    output: str | Path,
    executor: Executor,
    *,
    settings: Given | None = None,
    keep: Keep | None = None,
    batch: int | None = None,
    strict: bool = False,
    progress: Callable[[Progress], object] = lambda state: None,
    say: Callable[[str], object] = lambda text: None,
    warn: Callable[[str], object] = lambda text: None,
) -> Summary:
    """Invert and edit every item, and keep each as soon as it is made.

    An item that fails has its error in its record. A run that was stopped or killed goes on where
    it was, and makes again what has failed or was asked for in another way. Items of one kind are
    made in batches, whose division depends on the manifest alone, so that a run that was stopped
    gives the same as one that was not.

    Args:
        manifest: see `read_manifest`.
        output: a folder, or its address; see `nti.datasets.results`.
        executor: who makes the items: `Here(model)`, or `nti.datasets.cluster.Cluster`.
        settings: of all items; see `nti.datasets.fields`.
        keep: what is kept beside pictures.
        batch: items at once; None: as an earlier run had it, or as many as memory was measured to
            allow.
        strict: make nothing where anything is wrong.
        progress: hears of every batch.
        say: hears of each caption that was found.
        warn: hears of what is wrong with rows.

    Raises:
        ManifestError: of a manifest that is wrong somewhere, where `strict` is asked for.
        RunError: a folder of another run, or one that another process is writing to.
        OSError: results that cannot be written. What was written counts all the same.

    """
    started = time.monotonic()
    given, keep = dict(settings or {}), keep or Keep()
    _, places = invert_settings(given)  # of the run itself, before any item is looked at
    fitted_size(executor.config, (8, 8), places.get("size"))
    edit_settings(given)
    folder = open_folder(str(output))
    results = Results(folder)
    checked = check(
        manifest, given, executor.config, captioned=executor.captioned, strict=strict,
        is_done=results.is_done,
    )  # fmt: skip
    wrong = [*manifest.problems, *(problem for _, problem in checked.bad)]
    if strict and wrong:
        raise ManifestError("; ".join(str(problem) for problem in wrong))
    for problem in [*wrong, *checked.doubts]:
        warn(str(problem))
    folder.prepare()
    with _alone(folder):
        size = results.batch if batch is None else a_whole_number("batch", batch, 1)
        size = executor.measured_batch(given) if size is None else size
        asked = {
            "manifest": manifest.address,
            "settings": {**given, "keep": asdict(keep)},
            "batch": size,
            **executor.describe(),
        }
        results.begin(asked)
        for item, problem in checked.bad:
            results.write(failed(item, f"{problem.field}: {problem.message}"))
        count = _Count(results, manifest, checked, len(wrong))
        for outcomes in executor.made(count.batches(size), keep):
            for outcome in outcomes:
                if outcome.id in count.missing:
                    results.write(outcome)
                    count.count(outcome)
                    if outcome.id in count.captioned:
                        say(f"{outcome.id}: {outcome.record['prompt']}")
            progress(count.progress())
        results.finish([item.id for item in manifest.items], manifest.problems)
    seconds = time.monotonic() - started
    return Summary(count.done, count.failed, count.made, seconds, folder.address)


class _Count:
    """Which items are missing, and how fast they come."""

    def __init__(self, results: Results, manifest: Manifest, checked: Checked, failed: int) -> None:
        order = {item.id: number for number, item in enumerate(manifest.items)}
        self.items = sorted(checked.items, key=lambda item: order[item.id])
        self.failed, self.made = failed, 0
        self.total = len(self.items) + failed
        self.missing = {item.id for item in checked.good}
        self.captioned = {item.id for item in checked.good if item.prompt is None}
        self.done = len(checked.done)
        self._results, self._before = results, len(self.missing)
        self._started = time.monotonic()

    def batches(self, size: int) -> Iterator[Sequence[Item]]:
        """Yield the batches in which any item is missing: whole, so that a run that was stopped
        gives the same, but where all that is missing has failed before.
        """
        for batch in batched(self.items, size):
            missing = [item for item in batch if item.id in self.missing]
            if missing and all(self._has_failed(item) for item in missing):
                yield missing
            elif missing:
                yield batch

    def _has_failed(self, item: Item) -> bool:
        record = self._results.record(item.id)
        return record is not None and record["status"] == "failed"

    def count(self, outcome: Outcome) -> None:
        """Count an outcome that was written."""
        self.missing.discard(outcome.id)
        self.made += 1
        if outcome.record["status"] == "done":
            self.done += 1
        else:
            self.failed += 1

    def progress(self) -> Progress:
        """Return how far it is."""
        each = (time.monotonic() - self._started) / max(1, self.made)
        left = each * (self._before - self.made)
        return Progress(self.done, self.failed, self.total, 60.0 / each if self.made else 0.0, left)


def batched(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Yield neighbours that can be inverted at once, at most so many of them."""
    batch: list[Item] = []
    for item in items:
        alone = item.settings.get("size") == "native"
        if batch and (
            alone or len(batch) == size or dict(batch[0].settings) != dict(item.settings)
        ):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


@contextmanager
def _alone(folder: Any) -> Iterator[None]:
    """Keep other runs out of a folder of this machine; other systems of files have no such lock."""
    if not isinstance(folder, LocalFolder):
        yield
        return
    try:
        with locked(folder.path / LOCK):
            yield
    except BlockingIOError:
        raise RunError(
            f"{folder.address}: another run is writing there: wait for it, or give another folder"
        ) from None
