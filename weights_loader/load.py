"""Read networks from a safetensors file by rename tables; every key is mapped or named as ignored,
or it is an error.

This is the door for layouts: another one is another set of tables, prefixes and ignored keys.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from nti.weights_loader.sd_v1 import PREFIXES, Row
from safetensors import SafetensorError, safe_open
from torch import Tensor

__all__ = ["CheckpointError", "read_metadata", "read_networks"]

SHOWN = 10
"""Offenders listed in one error."""

IGNORED_OF = {"unet": (), "vae": ("loss.",), "text": ("embeddings.position_ids",)}
"""Keys of each network (beginnings, if they end in a dot) that hold none of its weights."""

IGNORED = (
    "model_ema.",
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "logvar",
)
"""Keys beside the networks, likewise: schedule buffers and moving averages."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded; the message lists what is wrong with it."""


def _open(path: Path, device: str = "cpu") -> safe_open:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a .safetensors checkpoint")
    try:
        return safe_open(path, framework="pt", device=device)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error})") from error


def read_metadata(path: Path) -> dict[str, str]:
    """Return the file's metadata, empty where it has none.

    Raises CheckpointError where there is no such file or it is no safetensors file.
    """
    with _open(path) as file:
        return dict(file.metadata() or {})


def read_networks(
    path: Path,
    tables: Mapping[str, Sequence[Row]],
    shapes: Mapping[str, Mapping[str, torch.Size]],
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, dict[str, Tensor]]:
    """Read the networks named by `tables` (`unet`, `vae`, `text`).

    Args:
        path: a file in the original layout. If only `vae` is asked for, its keys may stand there
            without prefix.
        tables: the rename table of each network.
        shapes: what shape each target parameter must have.
        dtype: of the tensors returned.
        device: where they go.

    Returns:
        For each network its parameters by this project's names.

    Raises:
        CheckpointError: keys that are missing, unknown, misshapen or not finite, up to ten of them
        listed.

    """
    problems: list[str] = []
    networks: dict[str, dict[str, Tensor]] = {name: {} for name in tables}
    with _open(path, str(device)) as file:
        unused = set(file.keys())
        prefixes = dict(PREFIXES)
        if set(tables) == {"vae"} and not any(key.startswith(PREFIXES["vae"]) for key in unused):
            prefixes["vae"] = ""
        for network, table in tables.items():
            for sources, target in table:
                keys = [prefixes[network] + source for source in sources]
                missing = [key for key in keys if key not in unused]
                unused.difference_update(keys)
                if missing:
                    problems += [f"missing {key}" for key in missing]
                    continue
                value = torch.cat([file.get_tensor(key) for key in keys])
                problem = _problem(value, shapes[network][target])
                if problem:
                    problems.append(f"{' + '.join(keys)}: {problem}")
                else:
                    networks[network][target] = value.to(dtype)
        wanted = tuple(prefixes[network] for network in tables)
    # A file that holds a whole model may be read for one of its networks.
    others = tuple(p for name, p in PREFIXES.items() if name not in tables)
    for key in sorted(unused):
        if not _ignored(key, prefixes) and (key.startswith(wanted) or not key.startswith(others)):
            problems.append(f"unknown key {key}")
    if problems:
        listed = "\n  ".join(problems[:SHOWN])
        more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise CheckpointError(
            f"{path}: {len(problems)} problems with its weights:\n  {listed}{more}"
        )
    return networks


def _ignored(key: str, prefixes: Mapping[str, str]) -> bool:
    names = [prefixes[network] + name for network, names in IGNORED_OF.items() for name in names]
    return any(key.startswith(n) if n.endswith(".") else key == n for n in (*IGNORED, *names))


def _problem(value: Tensor, expected: torch.Size) -> str | None:
    """Say what is wrong with a tensor, or None."""
    if value.shape != expected:
        return f"got shape {tuple(value.shape)}, expected {tuple(expected)}"
    if not value.is_floating_point():
        return f"got {value.dtype}, expected floating point"
    if not torch.isfinite(value).all():
        return "holds values that are not finite"
    return None
