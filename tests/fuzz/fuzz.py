"""Damage files and read them: what each reader makes of them, counted into docs/reliability.md.

    python tests/fuzz/fuzz.py --cases 20000

A case passes where the file is read or refused by a documented error that is one line, within 10
seconds and 2 GiB. Everything else is printed with its seed, and the exit code is 1. Cases run in
processes of their own, so that a crash is a case, too.
"""

import argparse
import contextlib
import re
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

from readers import READERS  # noqa: E402

PAGE = ROOT / "docs" / "reliability.md"
TABLE = re.compile(r"(<!-- fuzz -->\n).*(<!-- /fuzz -->)", re.DOTALL)
SECONDS, BYTES, BATCH = 10, 2 * 2**30, 1000


class Hang(BaseException):
    """A case that takes too long; no handler of the code under test may take it for an error."""


def attempt(name: str, first: int, cases: int, folder: Path) -> Iterator[tuple[int, str]]:
    """Run some cases of a reader; yield each one's seed and what became of it."""
    with without_tokenizer():
        reader = READERS[name](folder)
        for seed in range(first, first + cases):
            reader.path.write_bytes(reader.damage(Random(f"{name} {seed}")))
            yield seed, outcome(reader.read, reader.errors, reader.path)


def outcome(
    read: Callable[[], object], errors: tuple[type[Exception], ...], path: Path | None = None
) -> str:
    """Read once: `read`, `refused`, or what is wrong. Who refuses names the path or its folder."""
    began = time.monotonic()
    signal.signal(signal.SIGALRM, _hang)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read()
        return "read"
    except errors as error:
        told = str(error)
        if not told or len(told) > 10_000:
            return f"a message of {len(told)} characters"
        if not told.replace("\n", "").isprintable():
            return f"a message that a terminal may obey: {told[:200]!r}"
        if path is not None and not any(str(p) in told for p in (path, *path.parents[:2])):
            return f"a message that does not name the file: {told[:200]}"
        return "refused"
    except Hang:
        return f"no end after {time.monotonic() - began:.0f} s"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _hang(*_: object) -> None:
    raise Hang


@contextlib.contextmanager
def without_tokenizer() -> Iterator[None]:
    """It reads open_clip's merges for a tenth of a second, and nothing of the file."""
    import nti.model
    from readers import SMALLEST

    names = {"Tokenizer": lambda context_length: None, "SD_V1": SMALLEST}
    before = {name: getattr(nti.model, name) for name in names}
    for name, value in names.items():
        setattr(nti.model, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(nti.model, name, value)


def _work(name: str, first: int, cases: int) -> None:
    """Run a batch as a process of its own, and print each case."""
    import torch

    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        found = attempt(name, first, cases, Path(folder))
        for number, (seed, what) in enumerate(found):
            if number == 0:  # what torch has mapped is not the reader's
                _limit_memory()
            print(f"{seed}\t{what}", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"peak\t{peak}", flush=True)


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _batch(name: str, first: int, cases: int) -> tuple[Counter[str], list[str], int]:
    command = [sys.executable, __file__, "--work", name, str(first), str(cases)]
    run = subprocess.run(command, capture_output=True, text=True)
    lines = [line.partition("\t")[::2] for line in run.stdout.splitlines()]
    counts, wrong, peak = Counter[str](), [], 0
    for seed, what in lines:
        if seed == "peak":
            peak = int(what)
        elif what in ("read", "refused"):
            counts[what] += 1
        else:
            counts["wrong"] += 1
            wrong.append(f"{name}, seed {seed}: {what}")
    if run.returncode:
        counts["wrong"] += 1
        last = lines[-1][0] if lines else "none"
        wrong.append(f"{name}, after seed {last}: exit code {run.returncode}: {run.stderr[-500:]}")
    return counts, wrong, peak


def main() -> int:
    """Run all readers, print what is wrong, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=20_000, help="of each reader")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--reader", action="append", choices=list(READERS))
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        _work(options.work[0], int(options.work[1]), int(options.work[2]))
        return 0
    lines = ["| reader | cases | read | refused | wrong | largest process, MiB | seconds |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|"]
    failed = 0
    for name in options.reader or READERS:
        began = time.monotonic()
        starts = range(0, options.cases, BATCH)
        sizes = [min(BATCH, options.cases - first) for first in starts]
        with ThreadPoolExecutor(options.jobs) as pool:
            found = list(pool.map(_batch, [name] * len(starts), starts, sizes))
        counts = sum((each[0] for each in found), Counter[str]())
        for line in (line for each in found for line in each[1]):
            print(line)
        failed += counts["wrong"]
        took, peak = time.monotonic() - began, max(each[2] for each in found) / 2**20
        lines.append(
            f"| {name} | {sum(counts.values()):,} | {counts['read']:,} | {counts['refused']:,} |"
            f" {counts['wrong']:,} | {peak:,.0f} | {took:.0f} |"
        )
        print(lines[-1], flush=True)
    if not options.reader and PAGE.exists():
        from rows import environment, make_row

        row = make_row("fuzz", "", "")
        where = f"On {environment()}, torch {row.torch}, commit {row.commit}."
        table = "\n".join([*lines, "", where, ""])
        text = PAGE.read_text("utf-8")
        PAGE.write_text(TABLE.sub(lambda m: m[1] + table + m[2], text), "utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
