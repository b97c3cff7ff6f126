"""A benchmark row: what was measured, on what, and how right the result was."""

import csv
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from statistics import quantiles

import torch

__all__ = ["Row", "environment", "make_row", "read_rows", "write_rows"]


@dataclass(frozen=True)
class Row:
    """The columns of every CSV file but those of `shapes/`."""

    section: str
    provider: str
    case: str
    """Size, batch or whatever the providers have in common."""
    dtype: str
    repeats: int
    p20_ms: float
    p50_ms: float
    p80_ms: float
    peak_mib: float
    """Of a process that runs this provider alone; 0: not measured."""
    quality: float
    """See `unit`; empty unit: not measured."""
    unit: str
    device: str
    threads: int
    torch: str
    triton: str
    commit: str
    dirty: bool
    tflop: float = 0.0
    """The work that the result needs; 0: not counted."""
    imports_mib: float = 0.0
    """Of the peak, what the process had imported before it began."""


def make_row(
    section: str,
    provider: str,
    case: str,
    *,
    dtype: torch.dtype = torch.float32,
    milliseconds: Sequence[float] = (),
    peak_mib: float = 0.0,
    quality: float = 0.0,
    unit: str = "",
    tflop: float = 0.0,
    imports_mib: float = 0.0,
) -> Row:
    """Fill in the machine, the versions and the commit."""
    times = list(milliseconds)
    if len(times) > 1:
        cuts = quantiles(times, n=10, method="inclusive")
        p20, p50, p80 = cuts[1], cuts[4], cuts[7]
    else:
        p20 = p50 = p80 = times[0] if times else 0.0
    return Row(
        section=section,
        provider=provider,
        case=case,
        dtype=str(dtype).removeprefix("torch."),
        repeats=len(times),
        p20_ms=round(p20, 4),
        p50_ms=round(p50, 4),
        p80_ms=round(p80, 4),
        peak_mib=round(peak_mib, 1),
        quality=float(f"{quality:.3g}"),
        unit=unit,
        device=environment(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        triton=_version("triton"),
        commit=_git("rev-parse", "--short", "HEAD"),
        dirty=_is_dirty(),
        tflop=float(f"{tflop:.6g}"),
        imports_mib=round(imports_mib, 1),
    )


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write a section's rows, replacing those of the same provider, case and dtype on a device."""
    new = {(r.provider, r.case, r.dtype, r.device) for r in rows}
    old = [r for r in read_rows(path) if (r.provider, r.case, r.dtype, r.device) not in new]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in [*old, *rows])


def read_rows(path: Path) -> list[Row]:
    """Return a file's rows; none where there is no such file."""
    if not path.exists():
        return []
    types = {f.name: f.type for f in fields(Row)}
    with path.open(newline="") as file:
        return [
            Row(**{k: _parse(types[k], v) for k, v in row.items()}) for row in csv.DictReader(file)
        ]


def _parse(kind: object, text: str) -> str | int | float | bool:
    if kind is bool:
        return text == "True"
    if kind is int or kind is float:
        return kind(text)
    return text


def environment() -> str:
    """Return the device in words.

    A processor with its family and model, as one name stands for several.
    """
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    facts = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    name = facts.get("model name", platform.machine())
    if "cpu family" in facts and "model" in facts:
        name += f" (family {facts['cpu family']}, model {facts['model']})"
    return f"{name}, {torch.get_num_threads()} cores"


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _is_dirty() -> bool:
    """Whether tracked files have changed, other than the results that rows are written to."""
    where = (":/", ":(top,exclude)benchmarks/results")
    return bool(_git("status", "--porcelain", "--untracked-files=no", "--", *where))


def _git(*arguments: str) -> str:
    here = Path(__file__).parent
    done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True)
    return done.stdout.strip()
