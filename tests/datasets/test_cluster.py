"""Runs on a real Ray cluster of two workers on this machine: the same results, whoever dies."""

import os
import time
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import ClassVar

import psutil
import pytest
import ray

from nti.datasets import cluster, node_files
from nti.datasets.addresses import open_folder
from nti.datasets.cluster import Cluster, ClusterError, ModelRequest
from nti.datasets.item import Manifest
from nti.datasets.results import Results
from nti.datasets.run import Progress, run_manifest
from nti.datasets.work import Keep, Outcome, Work
from world import COUNT, FAST, same_pictures

REQUEST = ModelRequest(device="cpu")


@pytest.fixture(scope="module")
def workers() -> Iterator[Cluster]:
    found = Cluster("local", REQUEST, workers=2)
    yield found
    found.close()


def worker_processes(of: psutil.Process) -> list[psutil.Process]:
    found = []
    for child in of.children(recursive=True):
        try:
            if any("ray::_Worker" in part or "ray::Deadly" in part for part in child.cmdline()):
                found.append(child)
        except psutil.Error:
            pass
    return found


def test_a_cluster_makes_the_same_bits(
    workers: Cluster, manifest: Manifest, expected: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    summary = run_manifest(manifest, out, workers, settings=FAST, batch=1)
    assert (summary.done, summary.failed, summary.made) == (COUNT, 0, COUNT)
    assert same_pictures(expected, out)
    assert run_manifest(manifest, out, workers, settings=FAST).made == 0


def test_a_worker_that_is_killed_is_replaced(
    workers: Cluster, manifest: Manifest, expected: Path, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill(state: Progress) -> None:
        if not killed:
            victim = worker_processes(psutil.Process())[0]
            killed.append(victim.pid)
            victim.kill()

    out = tmp_path / "out"
    summary = run_manifest(manifest, out, workers, settings=FAST, batch=1, progress=kill)
    assert killed and (summary.done, summary.failed, summary.made) == (COUNT, 0, COUNT)
    assert same_pictures(expected, out)


def test_an_item_that_kills_its_workers_fails_alone(
    workers: Cluster, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison = manifest.items[1].id

    class Deadly(cluster._Worker):
        def make(self, works: Sequence[Work], keep: Keep) -> list[Outcome]:
            if any(work.item.id == poison for work in works):
                os._exit(1)
            return super().make(works, keep)

    monkeypatch.setattr(cluster, "_Worker", Deadly)
    deadly = Cluster("auto", REQUEST, workers=1, retries=1)
    few = Manifest(manifest.address, manifest.items[:3])
    try:
        summary = run_manifest(few, tmp_path / "out", deadly, settings=FAST, batch=3)
    finally:
        ray.kill(deadly._first)
    assert (summary.done, summary.failed) == (2, 1)
    record = Results(open_folder(str(tmp_path / "out"))).record(poison)
    assert record is not None and "its worker died 2 times" in record["error"]


def test_a_file_that_a_node_lacks_is_fetched(workers: Cluster, tmp_path: Path) -> None:
    here = tmp_path / "here.bin"
    here.write_bytes(b"abc")

    def fetched(name: str, data: bytes) -> Path:
        found = node_files.fetched({name: (sha256(data).hexdigest(), ray.put(data))})
        assert found(None) is None
        return Path(found(name))

    assert fetched(str(here), b"abc") == here
    path = fetched("/nowhere/x.bin", b"xyz")
    assert path.read_bytes() == b"xyz"
    before = path.stat().st_mtime_ns
    assert fetched("/nowhere/x.bin", b"xyz") == path and path.stat().st_mtime_ns == before
    # Another file of the same name and size is another file.
    assert fetched("/nowhere/x.bin", b"uvw").read_bytes() == b"uvw"
    assert fetched(str(here), b"abd").read_bytes() == b"abd" and here.read_bytes() == b"abc"
    both = {f"/nowhere/m/{n}": (sha256(n.encode()).hexdigest(), ray.put(n.encode())) for n in "ab"}
    folder = Path(node_files.fetched(both)("/nowhere/m"))
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b"]


def test_workers_that_cannot_start_say_why(workers: Cluster) -> None:
    with pytest.raises(ValueError, match="workers: got 0"):
        Cluster("auto", REQUEST, workers=0)
    with pytest.raises(ClusterError, match=r"a worker cannot start: .*backend: got 'nonsense'"):
        Cluster("auto", ModelRequest(device="cpu", backend="nonsense"), workers=1)
    with pytest.raises(ClusterError, match="smaller --cpus-per-worker"):
        Cluster("auto", REQUEST, cpus_per_worker=10_000)


def test_an_item_has_as_many_retries_as_it_may(manifest: Manifest) -> None:
    batch = cluster._Batch(manifest.items[:2])
    first = batch.after_death(2)
    assert [each.items for each in first] == [(item,) for item in manifest.items[:2]]
    (second,) = first[0].after_death(2)
    assert second.deaths == 2 and second.after_death(2) == [] == batch.after_death(0)
    assert batch.singles() and first[0].singles() == []


class Fake:
    """What a crew asks of a cluster, none of whose new workers starts."""

    _described: ClassVar = {"weights": "a"}

    def __init__(self, said: object) -> None:
        self.said, self._ray, self.exceptions = said, self, self
        self.RayError = RuntimeError

    def get(self, future: object) -> object:
        if self.said is None:
            raise RuntimeError("no such device")
        return self.said

    def kill(self, worker: object) -> None: ...

    def _starting(self, count: int) -> dict[object, object]:
        return {object(): object() for _ in range(count)}


def test_workers_that_do_not_start_are_replaced_and_then_given_up() -> None:
    crew = cluster._Crew(Fake(None), ["first"], {1: "second"})  # type: ignore[arg-type]
    for _ in range(cluster.STARTS - 1):
        crew.started(next(iter(crew.starting)))
    assert len(crew.starting) == 1 and crew.idle == ["first"]
    with pytest.raises(ClusterError, match="cannot start: no such device"):
        crew.started(next(iter(crew.starting)))


def test_a_worker_that_would_compute_otherwise_is_refused() -> None:
    crew = cluster._Crew(Fake({"weights": "b"}), [], {1: "second"})  # type: ignore[arg-type]
    with pytest.raises(ClusterError, match="got a worker with .*'b'.*, expected .*'a'"):
        crew.started(1)
    crew = cluster._Crew(Fake({"weights": "a"}), [], {1: "second"})  # type: ignore[arg-type]
    crew.started(1)
    assert crew.idle == ["second"]


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("127.0.0.1:1", "nothing answers"),
        ("ray://127.0.0.1:1", "nothing answers"),
        ("nonsense", "expected local, auto"),
    ],
)
def test_an_address_that_does_not_answer_is_told_at_once(address: str, told: str) -> None:
    started = time.monotonic()
    with pytest.raises(ClusterError, match=told):
        Cluster(address, REQUEST)
    assert time.monotonic() - started < 10
