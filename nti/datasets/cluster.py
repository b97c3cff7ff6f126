"""`Cluster`: items made by workers of a Ray cluster, each of which loads the model once.

The driver reads manifests and images, hands batches out, and writes results; workers need neither
the images nor the folder. A worker that dies is replaced, and what it was at is handed out again.
"""

import hashlib
import logging
import os
import socket
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nti.datasets.fields import Given
from nti.datasets.item import Item
from nti.datasets.work import Keep, Outcome, Work, failed, read_work
from nti.files import locked, write_file
from nti.model import locate

__all__ = ["Cluster", "ClusterError", "ModelRequest"]

RETRIES = 2
"""How often the items of a worker that died are handed out again."""

PATIENCE = 5.0
"""Seconds in which an address must answer."""


PATIENCE_TO_START = 60.0
"""Seconds after which it is told that a worker has not started."""


class ClusterError(ValueError):
    """A cluster that cannot be had, or whose workers cannot start."""


@dataclass(frozen=True)
class ModelRequest:
    """What workers call `load_model` with."""

    checkpoint: str | None = None
    vae: str | None = None
    device: str | None = None
    dtype: str | None = None
    backend: str = "auto"
    memory: str = "normal"
    execution: str = "auto"
    captioner: str | None = None
    captioner_model: str | None = None
    candidates: tuple[str, ...] = ()
    captioned: bool = False


class Cluster:
    """Makes items on a Ray cluster.

    Raises ClusterError for an address that does not answer, or for workers that cannot start.
    """

    def __init__(
        self,
        address: str,
        request: ModelRequest,
        *,
        cpus_per_worker: int = 1,
        workers: int | None = None,
        retries: int = RETRIES,
    ) -> None:
        """Connect, and start the first worker.

        Args:
            address: `local`, a cluster that ends with this process; `auto`, one that runs on this
                machine already, else `local`; or what `ray.init` takes.
            request: the model.
            cpus_per_worker: threads of a worker; where the cluster has GPUs each worker has one.
            workers: how many; None: as many as the cluster has room for.
            retries: how often items are handed out again whose worker died.

        """
        self._ray = _connected(address)
        self._request, self._retries = request, retries
        _, self.config = locate(request.checkpoint, request.vae)
        self.captioned = request.captioned
        self._files = self._shared([request.checkpoint, request.vae, request.captioner])
        room = self._ray.cluster_resources()
        gpus = int(room.get("GPU", 0)) if request.device in (None, "cuda") else 0
        self._each = {"num_gpus": 1 if gpus else 0, "num_cpus": cpus_per_worker}
        fitting = gpus or int(room.get("CPU", 1)) // cpus_per_worker
        self._count = fitting if workers is None else workers
        if self._count < 1 or cpus_per_worker > room.get("CPU", 0):
            raise ClusterError(
                f"cluster: got {int(room.get('CPU', 0))} CPUs, expected {cpus_per_worker} or more"
                " for one worker: give a smaller --cpus-per-worker"
            )
        self._first = self._start()
        self._described = self._started(self._first.describe.remote())

    def describe(self) -> dict[str, Any]:
        """Return what results depend on beside settings, as the first worker says."""
        return self._described

    def measured_batch(self, given: Given) -> int:
        """Return how many images fit into a worker's memory at once."""
        return int(self._ray.get(self._first.measured_batch.remote(dict(given))))

    def made(self, batches: Iterable[Sequence[Item]], keep: Keep) -> Iterator[list[Outcome]]:
        """Yield what became of each batch, as the workers finish.

        A batch whose worker died is handed out again, and then item by item, so that one item that
        kills its worker does not take the others along.
        """
        waiting: deque[_Batch] = deque()
        coming = (_Batch(tuple(batch)) for batch in batches)
        idle = [self._first]
        starting = self._starting(self._count - 1)
        running: dict[Any, tuple[Any, _Batch]] = {}
        try:
            while True:
                while idle and (batch := waiting.popleft() if waiting else next(coming, None)):
                    worker = idle.pop()
                    works = [read_work(item) for item in batch.items]
                    running[worker.make.remote(works, keep)] = worker, batch
                if not running and idle:
                    return
                ready, _ = self._ray.wait([*running, *starting], timeout=1.0)
                for future in ready:
                    if future in starting:
                        self._started(future)
                        idle.append(starting.pop(future))
                        continue
                    worker, batch = running.pop(future)
                    try:
                        outcomes: list[Outcome] = self._ray.get(future)
                    except self._ray.exceptions.RayError as error:
                        self._ray.kill(worker)
                        starting |= self._starting(1)
                        again = batch.after_death(self._retries)
                        waiting.extend(again)
                        if not again:
                            yield [failed(item, _died(item, batch, error)) for item in batch.items]
                        continue
                    idle.append(worker)
                    yield outcomes
        finally:
            workers = [*idle, *starting.values(), *(worker for worker, _ in running.values())]
            self._first = workers.pop(0)  # stays for what comes next
            for worker in workers:
                self._ray.kill(worker)

    def close(self) -> None:
        """End the workers and leave the cluster; one that this process has started ends, too."""
        self._ray.kill(self._first)
        self._ray.shutdown()

    def _starting(self, count: int) -> dict[Any, Any]:
        """Start workers; return each by what is there once it has."""
        workers = [self._start() for _ in range(count)]
        return {worker.describe.remote(): worker for worker in workers}

    def _started(self, future: Any) -> dict[str, Any]:
        """Return what a worker says that has started; ClusterError where it cannot start.

        A cluster that others use may have no room: this waits, and says so.
        """
        ready, _ = self._ray.wait([future], timeout=PATIENCE_TO_START)
        if not ready:
            free = self._ray.available_resources()
            warnings.warn(
                f"waiting for a worker to start: the cluster has {free.get('CPU', 0):g} CPUs and"
                f" {free.get('GPU', 0):g} GPUs free, and one needs {self._each}",
                stacklevel=2,
            )
        try:
            found: dict[str, Any] = self._ray.get(future)
            return found
        except self._ray.exceptions.RayError as error:
            raise ClusterError(f"cluster: a worker cannot start: {_cause(error)}") from error

    def _start(self) -> Any:
        worker = self._ray.remote(**self._each, max_restarts=0)(_Worker)
        return worker.remote(self._request, self._files, self._each["num_cpus"])

    def _shared(self, paths: Sequence[str | None]) -> dict[str, Any]:
        """Put files where each node can fetch them once, by the names that they have here."""
        found: dict[str, Any] = {}
        for given in filter(None, paths):
            path = Path(given)
            for file in [path] if path.is_file() else sorted(path.rglob("*")):
                if file.is_file():
                    found[str(file)] = (file.stat().st_size, self._ray.put(file.read_bytes()))
        return found


@dataclass(frozen=True)
class _Batch:
    """Items that are handed out together, and how often their worker has died."""

    items: tuple[Item, ...]
    deaths: int = 0

    def after_death(self, retries: int) -> list["_Batch"]:
        """Return what to hand out again: items by themselves the second time, and nothing where one
        of them has had all its retries.
        """
        if len(self.items) == 1:
            return [_Batch(self.items, self.deaths + 1)] if self.deaths < retries else []
        if self.deaths == 0:
            return [_Batch(self.items, 1)]
        return [_Batch((item,)) for item in self.items]


class _Worker:
    """One process of the cluster, with the model in its memory."""

    def __init__(self, request: ModelRequest, files: Mapping[str, Any], threads: int) -> None:
        import torch

        from nti.datasets.run import Here
        from nti.evaluation.captions import captioner_of
        from nti.model import load_model

        torch.set_num_threads(threads)
        here = _fetched(files)
        dtype = None if request.dtype is None else getattr(torch, request.dtype)
        model = load_model(
            here(request.checkpoint), vae=here(request.vae), device=request.device, dtype=dtype,
            backend=request.backend, memory=request.memory, execution=request.execution,
        )  # fmt: skip
        captioner = None
        if request.captioned:
            captioner = captioner_of(
                here(request.captioner), request.captioner_model, request.candidates
            )
        self.here = Here(model, captioner=captioner)

    def describe(self) -> dict[str, Any]:
        return self.here.describe()

    def measured_batch(self, given: Given) -> int:
        return self.here.measured_batch(given)

    def make(self, works: Sequence[Work], keep: Keep) -> list[Outcome]:
        return self.here.make(works, keep)


def _fetched(files: Mapping[str, Any]) -> Any:
    """Return what gives a file's name on this node: its own, or that of a copy.

    A node that lacks a file fetches it once, whichever of its workers is first.
    """
    import ray

    if all(
        os.path.isfile(name) and os.path.getsize(name) == size for name, (size, _) in files.items()
    ):
        return lambda name: name
    told = hashlib.sha256("\n".join(f"{n} {size}" for n, (size, _) in files.items()).encode())
    session = ray.get_runtime_context().get_job_id()
    folder = Path(tempfile.gettempdir()) / f"nti-{session}-{told.hexdigest()[:16]}"
    folder.mkdir(exist_ok=True)
    while True:
        try:
            with locked(folder / ".lock"):
                for name, (size, reference) in files.items():
                    path = folder / name.lstrip("/")
                    if not path.is_file() or path.stat().st_size != size:
                        write_file(path, ray.get(reference))
            break
        except BlockingIOError:  # another worker of this node is fetching them
            time.sleep(0.2)
    return lambda name: None if name is None else str(folder / name.lstrip("/"))


def _connected(address: str) -> Any:
    """Return Ray, connected; ClusterError where it is not installed or does not answer."""
    try:
        import ray
    except ImportError as error:
        raise ClusterError("--ray: needs Ray: pip install 'nti[cluster]'") from error

    def connect(to: str) -> None:
        started: dict[str, Any] = {"include_dashboard": False} if to == "local" else {}
        ray.init(
            to,
            log_to_driver=False,
            logging_level=logging.ERROR,
            ignore_reinit_error=True,
            **started,
        )

    if address not in ("auto", "local"):
        _answers(address)
    try:
        connect(address)
    except ConnectionError as error:
        if address != "auto":
            told = f"--ray: got {address}, where no cluster answers ({error})"
            raise ClusterError(told) from error
        connect("local")
    except (RuntimeError, ValueError) as error:
        raise ClusterError(f"--ray: got {address}, which Ray cannot use ({error})") from error
    return ray


def _answers(address: str) -> None:
    """Raise ClusterError unless something listens there: Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(
            f"--ray: got {address!r}, expected local, auto, HOST:PORT or ray://HOST:PORT"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(f"--ray: got {address}, where nothing answers ({error})") from error


def _cause(error: BaseException) -> str:
    """Return the last line of what Ray tells of an error, which names its cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _died(item: Item, batch: _Batch, error: BaseException) -> str:
    return f"{item.place}: its worker died {batch.deaths + 1} times ({_cause(error)})"
