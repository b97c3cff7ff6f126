"""Read networks from safetensors files by rename tables: every key is mapped or named as ignored,
or it is an error.

First the headers are examined, so that a wrong file is refused before a gigabyte of it is read;
then the tensors are read through a memory map straight into the dtype and device asked for.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from nti.weights_loader.checkpoint_file import (
    CheckpointError,
    TensorHeader,
    open_file,
    read_header,
)
from nti.weights_loader.layouts import Layout, choose, is_ignored
from nti.weights_loader.metadata import printable
from nti.weights_loader.sd_v1 import PREFIXES
from torch import Tensor

__all__ = ["NetworkReport", "examine", "not_finite", "problems_of", "read_networks"]

ROOTS = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text": "cond_stage_model."}
"""What all keys of a network begin with in a whole checkpoint."""

EMA = "model_ema."
"""What the keys of the UNet's moving averages begin with."""

SHOWN = 10
"""Offenders listed in one error."""

FLOATING = ("F64", "F32", "F16", "BF16")

MAPPED_BYTES = 64 * 2**20
"""A page that was read stays resident until its map is closed, so a map is not kept for longer."""

Shapes = Mapping[str, torch.Size]


@dataclass(frozen=True)
class NetworkReport:
    """What a file's header says of one network."""

    network: str
    """`unet`, `vae` or `text`."""
    path: Path
    layout: Layout | None
    """None where no key of the network was found in any layout."""
    parameters: int
    dtypes: tuple[str, ...]
    problems: tuple[str, ...]


def examine(
    files: Mapping[str, Path],
    layouts: Mapping[str, Sequence[Layout]],
    shapes: Mapping[str, Shapes],
) -> list[NetworkReport]:
    """Compare the headers with what each network needs; no tensor is read.

    Args:
        files: the file of each network.
        layouts: the spellings in which each network's keys may be found.
        shapes: what shape each parameter must have, by this project's names.

    Returns:
        One report a network; unknown keys of a file are problems of its first network.

    Raises:
        CheckpointError: a file that is missing or is no safetensors file.

    """
    headers = {path: read_header(path) for path in dict.fromkeys(files.values())}
    chosen = {name: choose(layouts[name], headers[path]) for name, path in files.items()}
    reports = []
    strangers = {path: _unknown(path, files, header, chosen) for path, header in headers.items()}
    for name, path in files.items():
        problems = _check(headers[path], chosen[name], layouts[name][0], shapes[name])
        problems += strangers.pop(path, [])
        reports.append(_report(name, path, headers[path], chosen[name], problems))
    return reports


def problems_of(reports: Sequence[NetworkReport]) -> str:
    """Return one message that lists up to ten problems, empty where there is none."""
    found = [(report.path, problem) for report in reports for problem in report.problems]
    if not found:
        return ""
    paths = ", ".join(str(path) for path in dict.fromkeys(path for path, _ in found))
    listed = "\n  ".join(problem for _, problem in found[:SHOWN])
    more = f"\n  and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    count = f"{len(found)} problem{'s' * (len(found) > 1)}"
    return f"{paths}: {count} with its weights:\n  {listed}{more}"


def read_networks(
    files: Mapping[str, Path],
    layouts: Mapping[str, Sequence[Layout]],
    shapes: Mapping[str, Shapes],
    *,
    dtypes: Mapping[str, torch.dtype],
    device: torch.device,
    channels_last: Collection[str] = (),
) -> dict[str, dict[str, Tensor]]:
    """Read networks (`unet`, `vae`, `text`); arguments as for `examine`.

    At no time is more in memory than what is returned, one tensor, and `MAPPED_BYTES` of a file.

    Args:
        files: the file of each network.
        layouts: the spellings in which each network's keys may be found.
        shapes: what shape each parameter must have.
        dtypes: of each network's tensors.
        device: where they go.
        channels_last: the networks whose convolutions are laid out so.

    Returns:
        For each network its parameters by this project's names.

    Raises:
        CheckpointError: as `examine`; or keys that are missing, unknown, misshapen or not finite,
        up to ten of them listed.

    """
    reports = examine(files, layouts, shapes)
    if message := problems_of(reports):
        raise CheckpointError(message)
    networks: dict[str, dict[str, Tensor]] = {}
    bad = []
    for report in reports:
        assert report.layout is not None
        dtype = dtypes[report.network]
        networks[report.network] = state = {}
        for keys, target, value in _values(report.path, report.layout):
            value = value.reshape(shapes[report.network][target])
            last = value.ndim == 4 and report.network in channels_last
            layout = torch.channels_last if last else torch.contiguous_format
            converted = value.to(device, dtype, copy=True, memory_format=layout)
            if not torch.isfinite(converted).all():
                finite = bool(torch.isfinite(value).all())
                what = f"too large for {dtype}" if finite else "not finite"
                bad.append(f"{' + '.join(keys)}: holds values that are {what}")
            state[target] = converted
        if bad:
            raise CheckpointError(problems_of([replace(report, problems=tuple(bad))]))
    return networks


def not_finite(report: NetworkReport) -> list[str]:
    """Read a network's values, one tensor at a time, and return a problem for each that is NaN or
    infinite somewhere; empty for a network that was not found.
    """
    if report.layout is None or report.problems:
        return []
    return [
        f"{' + '.join(keys)}: holds values that are not finite"
        for keys, _, value in _values(report.path, report.layout)
        if not torch.isfinite(value).all()
    ]


def _values(path: Path, layout: Layout) -> Iterator[tuple[list[str], str, Tensor]]:
    """Yield source keys, target name and value of each row, over maps that are closed in time."""
    rows = list(layout.rows)
    while rows:
        read = 0
        with open_file(path) as file:
            while rows and read < MAPPED_BYTES:
                sources, target = rows.pop(0)
                keys = [layout.prefix + source for source in sources]
                parts = [file.get_tensor(key) for key in keys]
                value = parts[0] if len(parts) == 1 else torch.cat(parts)
                read += value.nbytes
                yield keys, target, value
                del parts, value


def _check(
    header: Mapping[str, TensorHeader],
    layout: Layout | None,
    usual: Layout,
    shapes: Shapes,
) -> list[str]:
    """Return what is missing, misshapen or of a type that holds no weights."""
    if layout is None:
        averages = usual.prefix == PREFIXES["unet"] and any(k.startswith(EMA) for k in header)
        found = f"got EMA weights alone ({EMA}*), " if averages else ""
        first = usual.source_keys()[0]
        return [f"missing the whole network; {found}expected keys such as {first}"]
    problems = []
    for row in layout.rows:
        keys = [layout.prefix + source for source in row[0]]
        missing = [key for key in keys if key not in header]
        problems += [f"missing {key}" for key in missing]
        if not missing and (problem := _misfit([header[k] for k in keys], shapes[row[1]])):
            problems.append(f"{' + '.join(keys)}: {problem}")
    return problems


def _misfit(tensors: Sequence[TensorHeader], expected: torch.Size) -> str | None:
    """Say what is wrong with the tensors of one row, or None."""
    first = tensors[0].shape
    got = first
    if len(tensors) > 1 and all(t.shape for t in tensors):
        got = (sum(t.shape[0] for t in tensors), *first[1:])
    if _squeezed(got) != _squeezed(expected) or any(t.shape[1:] != first[1:] for t in tensors):
        return f"got shape {got}, expected {tuple(expected)}"
    strange = [t.dtype for t in tensors if t.dtype not in FLOATING]
    return f"got {strange[0]}, expected one of {', '.join(FLOATING)}" if strange else None


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    """Drop ones at the end: a 1x1 convolution and a linear layer hold the same weights."""
    shape = tuple(shape)
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _unknown(
    path: Path,
    files: Mapping[str, Path],
    header: Mapping[str, TensorHeader],
    chosen: Mapping[str, Layout | None],
) -> list[str]:
    """Return the keys of a file that no network read from it knows."""
    found = {name: layout for name, layout in chosen.items() if layout and files[name] == path}
    known = {key for layout in found.values() for key in layout.source_keys()}
    # A file that holds a whole model may be read for one of its networks.
    others = tuple(root for name, root in ROOTS.items() if name not in found)
    return [
        f"unknown key {printable(key)}"
        for key in sorted(header.keys() - known)
        if not key.startswith(others)
        and not any(is_ignored(key, layout) for layout in found.values())
    ]


def _report(
    name: str,
    path: Path,
    header: Mapping[str, TensorHeader],
    layout: Layout | None,
    problems: Sequence[str],
) -> NetworkReport:
    held = [header[key] for key in layout.source_keys() if key in header] if layout else []
    parameters = sum(torch.Size(tensor.shape).numel() for tensor in held)
    dtypes = tuple(sorted({tensor.dtype for tensor in held}))
    return NetworkReport(name, path, layout, parameters, dtypes, tuple(problems))
