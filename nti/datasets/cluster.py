"""`Cluster`: items made by workers of a Ray cluster, each of which loads the model once.

The driver reads manifests and images, hands batches out, and writes results; workers need neither
the images nor the folder. A worker that dies is replaced, and what it was at is handed out again.
"""

import logging
import socket
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nti.arguments import a_whole_number
from nti.datasets.fields import Given
from nti.datasets.item import Item
from nti.datasets.node_files import fetched, shared
from nti.datasets.work import Keep, Outcome, Work, failed, read_work
from nti.model import locate

__all__ = ["Cluster", "ClusterError", "ModelRequest"]

RETRIES = 2
"""How often an item whose worker died is handed out again."""

STARTS = 3
"""How often in a row workers may fail to start before a run gives up."""

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
            retries: how often an item is handed out again whose worker died.

        """
        self._ray = _connected(address)
        self._request, self._retries = request, retries
        a_whole_number("cpus_per_worker", cpus_per_worker, 1)
        _, self.config = locate(request.checkpoint, request.vae)
        self.captioned = request.captioned
        own = address in ("local", "auto") and len(self._ray.nodes()) == 1
        self._files = shared(
            [request.checkpoint, request.vae, request.captioner], to_others=not own
        )
        room = self._ray.cluster_resources()
        gpus = int(room.get("GPU", 0)) if request.device in (None, "cuda") else 0
        self._each = {"num_gpus": 1 if gpus else 0, "num_cpus": cpus_per_worker}
        fitting = gpus or int(room.get("CPU", 1)) // cpus_per_worker
        self._count = fitting if workers is None else a_whole_number("workers", workers, 1)
        self._sharing = 1 if gpus else -(-self._count // max(1, len(self._ray.nodes())))
        if self._count < 1 or cpus_per_worker > room.get("CPU", 0):
            raise ClusterError(
                f"cluster: got {int(room.get('CPU', 0))} CPUs, expected {cpus_per_worker} or more"
                " for one worker: give a smaller --cpus-per-worker"
            )
        self._first = self._start()
        self._described = self._first_words()

    def describe(self) -> dict[str, Any]:
        """Return what results depend on beside settings, as the first worker says."""
        return self._described

    def measured_batch(self, given: Given) -> int:
        """Return how many images fit into a worker's memory at once."""
        try:
            return int(self._ray.get(self._first.measured_batch.remote(dict(given), self._sharing)))
        except self._ray.exceptions.RayError as error:
            told = f"cluster: a worker died while it measured a batch: {_cause(error)}"
            raise ClusterError(told) from error

    def made(self, batches: Iterable[Sequence[Item]], keep: Keep) -> Iterator[list[Outcome]]:
        """Yield what became of each batch, as the workers finish.

        A batch whose worker died is handed out again item by item, so that one item that kills its
        worker does not take the others along.
        """
        waiting: deque[_Batch] = deque()
        coming = (_Batch(tuple(batch)) for batch in batches)
        crew = _Crew(self, [self._first], self._starting(self._count - 1))
        running: dict[Any, tuple[Any, _Batch]] = {}
        try:
            while True:
                while crew.idle and (batch := waiting.popleft() if waiting else next(coming, None)):
                    worker = crew.idle.pop()
                    works = [read_work(item) for item in batch.items]
                    running[worker.make.remote(works, keep)] = worker, batch
                if not running and crew.idle:
                    return
                crew.tell_of_waiting(bool(running))
                ready, _ = self._ray.wait([*running, *crew.starting], timeout=1.0)
                for future in ready:
                    if future in crew.starting:
                        crew.started(future)
                        continue
                    worker, batch = running.pop(future)
                    try:
                        outcomes: list[Outcome] = self._ray.get(future)
                    except self._ray.exceptions.RayTaskError as error:  # it lives
                        crew.idle.append(worker)
                        waiting.extend(batch.singles())
                        if len(batch.items) == 1:
                            yield [failed(batch.items[0], f"its worker failed: {_cause(error)}")]
                    except self._ray.exceptions.RayError as error:
                        crew.replace(worker)
                        again = batch.after_death(self._retries)
                        waiting.extend(again)
                        if not again:
                            yield [failed(item, _died(batch, error)) for item in batch.items]
                    else:
                        crew.idle.append(worker)
                        yield outcomes
        finally:
            workers = [*crew.idle, *(worker for worker, _ in running.values())]
            workers += crew.starting.values()
            self._first = workers[0] if workers else self._first  # stays for what comes next
            for worker in workers[1:]:
                self._ray.kill(worker)

    def close(self) -> None:
        """End the workers and leave the cluster; one that this process has started ends, too."""
        self._ray.kill(self._first)
        self._ray.shutdown()

    def _starting(self, count: int) -> dict[Any, Any]:
        """Start workers; return each by what is there once it has."""
        workers = [self._start() for _ in range(count)]
        return {worker.describe.remote(): worker for worker in workers}

    def _first_words(self) -> dict[str, Any]:
        """Return what the first worker says of itself; ClusterError where it cannot start.

        A cluster that others use may have no room: this waits, and says so.
        """
        future = self._first.describe.remote()
        ready, _ = self._ray.wait([future], timeout=PATIENCE_TO_START)
        if not ready:
            self._tell_of_room()
        try:
            found: dict[str, Any] = self._ray.get(future)
            return found
        except self._ray.exceptions.RayError as error:
            raise ClusterError(f"cluster: a worker cannot start: {_cause(error)}") from error

    def _tell_of_room(self) -> None:
        free = self._ray.available_resources()
        warnings.warn(
            f"waiting for a worker to start: the cluster has {free.get('CPU', 0):g} CPUs and"
            f" {free.get('GPU', 0):g} GPUs free, and one needs {self._each}",
            stacklevel=2,
        )

    def _start(self) -> Any:
        worker = self._ray.remote(**self._each, max_restarts=0)(_Worker)
        return worker.remote(self._request, self._files, self._each["num_cpus"])


class _Crew:
    """Workers that wait for work, and those that are starting."""

    def __init__(self, cluster: Cluster, idle: list[Any], starting: dict[Any, Any]) -> None:
        self._cluster, self.idle, self.starting = cluster, idle, starting
        self._failures = 0
        self._since: float | None = None

    def replace(self, worker: Any) -> None:
        """Start a worker in the place of one that died."""
        self._cluster._ray.kill(worker)
        self.starting |= self._cluster._starting(1)

    def started(self, future: Any) -> None:
        """Take in a worker that has started, or start another where it could not.

        ClusterError where that happens again and again, or for a worker that would compute
        otherwise than the first.
        """
        worker, ray = self.starting.pop(future), self._cluster._ray
        try:
            said = ray.get(future)
        except ray.exceptions.RayError as error:
            self._failures += 1
            if self._failures >= STARTS:
                raise ClusterError(f"cluster: a worker cannot start: {_cause(error)}") from error
            self.replace(worker)
            return
        if said != self._cluster._described:
            raise ClusterError(
                f"cluster: got a worker with {said}, expected {self._cluster._described}, as the"
                " first has: give all nodes the same weights, versions and devices"
            )
        self._failures = 0
        self.idle.append(worker)

    def tell_of_waiting(self, running: bool) -> None:
        """Say that no worker can start, once nothing has gone on for a while."""
        if running or self.idle:
            self._since = None
        elif self._since is None:
            self._since = time.monotonic()
        elif time.monotonic() - self._since > PATIENCE_TO_START:
            self._cluster._tell_of_room()
            self._since = time.monotonic()


@dataclass(frozen=True)
class _Batch:
    """Items that are handed out together, and how often their worker has died."""

    items: tuple[Item, ...]
    deaths: int = 0

    def after_death(self, retries: int) -> list["_Batch"]:
        """Return what to hand out again, item by item; nothing after the last of the retries."""
        return self.singles(self.deaths + 1) if self.deaths < retries else []

    def singles(self, deaths: int = 0) -> list["_Batch"]:
        """Return its items by themselves; nothing where it is one already, and none has died."""
        if len(self.items) == 1 and not deaths:
            return []
        return [_Batch((item,), deaths) for item in self.items]


class _Worker:
    """One process of the cluster, with the model in its memory."""

    def __init__(self, request: ModelRequest, files: Mapping[str, Any], threads: int) -> None:
        import torch

        from nti.datasets.run import Here
        from nti.evaluation.captions import captioner_of
        from nti.model import load_model

        torch.set_num_threads(threads)
        here = fetched(files)
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

    def measured_batch(self, given: Given, sharing: int) -> int:
        return self.here.measured_batch(given, sharing)

    def make(self, works: Sequence[Work], keep: Keep) -> list[Outcome]:
        return self.here.make(works, keep)


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


def _died(batch: _Batch, error: BaseException) -> str:
    return f"its worker died {batch.deaths + 1} times ({_cause(error)})"
