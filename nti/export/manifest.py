"""What an exported folder says of itself, `manifest.json`: all that a runtime needs beside the
graphs and the weights.

docs/embedding.md describes it.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from nti import __version__
from nti.editing.local_blend import POOL, START, THRESHOLD
from nti.export.functions import Function
from nti.files import write_file
from nti.image import Placement
from nti.inversion.inversion_file import Header, header_words
from nti.inversion.provenance import Provenance
from nti.inversion.settings import InversionSettings
from nti.model import StableDiffusion
from nti.sampling.schedule import Schedule
from nti.sampling.step import BETA_1, BETA_2, EPSILON
from nti.weights_loader.metadata import convert, decode

__all__ = [
    "BLEND",
    "FORMAT",
    "NAME",
    "WEIGHTS",
    "ExportError",
    "FunctionEntry",
    "Manifest",
    "Port",
    "file_entry",
    "function_entry",
    "instructions",
    "inversion_header",
    "is_export",
    "optimization",
    "read_manifest",
    "schedule_tables",
    "write_manifest",
]

FORMAT = "nti-export-2"
NAME = "manifest.json"
WEIGHTS = "weights.safetensors"

BLEND = {"start": START, "threshold": THRESHOLD, "pool": POOL}
"""Local blend's defaults; a plan has a start and a threshold of its own."""


FLAGS = ("flags", "Features")
"""What Linux calls a processor's instructions: of x86, of ARM."""


class ExportError(ValueError):
    """A folder that is no export, or does not go with what is to use it."""


@dataclass(frozen=True)
class Port:
    """An input or an output of a function: a tensor, row by row."""

    name: str
    dtype: str
    """As PyTorch calls it: `float32`, `int64`, `bool`."""
    shape: list[int]
    strides: list[int]
    """In elements; always those of a contiguous tensor."""

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> "Port":
        """Describe a tensor as it would lie row by row."""
        dtype, shape = str(tensor.dtype).removeprefix("torch."), list(tensor.shape)
        return cls(name, dtype, shape, [math.prod(shape[k + 1 :]) for k in range(len(shape))])


@dataclass(frozen=True)
class FunctionEntry:
    """A function, its contract and its files."""

    inputs: list[Port]
    outputs: list[Port]
    files: dict[str, str]
    """By format, `aoti` or `onnx`."""


@dataclass(frozen=True)
class Manifest:
    """The whole."""

    format: str
    model_name: str
    image: list[int]
    """(1, 3, H, W)."""
    latent: list[int]
    """(1, 4, h, w)."""
    context: list[int]
    """(1, 77, C)."""
    batch: int
    edits: int
    steps: int
    guidance_scale: float
    device: str
    dtype: str
    """Of the UNet's weights."""
    functions: dict[str, FunctionEntry]
    weights: dict[str, Port]
    """All tensors of the weights' file, as they lie in it."""
    files: dict[str, dict[str, Any]]
    """`sha256` and `bytes` of each file of the folder."""
    schedule: dict[str, Any]
    """See `schedule_tables`."""
    optimization: dict[str, Any]
    """See `optimization`."""
    blend: dict[str, float]
    """See `BLEND`."""
    inversion: dict[str, Any]
    """See `inversion_header`."""
    methods: list[str]
    """Of whose inversions an edit takes null embeddings and latents alone."""
    versions: dict[str, str]
    """Of nti, torch and the rest."""
    instructions: list[str]
    """Of the processor, as Linux names them: what packages may use. None without packages."""


def schedule_tables(schedule: Schedule) -> dict[str, Any]:
    """Return the timesteps and both directions' coefficients, in sampling order.

    A step is z' = of_latent z + of_eps eps. `sample` leaves timestep i, `invert` arrives at it.
    """
    there = [schedule.coefficients(i) for i in range(schedule.steps)]
    return {
        "timesteps": list(schedule.timesteps),
        "sample": {
            "of_latent": [step.latent.item() for step in there],
            "of_eps": [step.eps.item() for step in there],
        },
        # z_{t-1} = a z_t + b eps, solved for z_t.
        "invert": {
            "of_latent": [1 / step.latent.item() for step in there],
            "of_eps": [-step.eps.item() / step.latent.item() for step in there],
        },
    }


def optimization(settings: InversionSettings, model: StableDiffusion) -> dict[str, Any]:
    """Return null-text optimization's settings: rules as tables of T numbers, Adam's constants."""
    table = settings.table(model)
    return {
        **{name: table[name] for name in ("inner_steps", "learning_rate", "threshold")},
        "beta_1": BETA_1,
        "beta_2": BETA_2,
        "epsilon": EPSILON,
    }


def inversion_header(
    settings: InversionSettings, model: StableDiffusion, size: tuple[int, int]
) -> dict[str, Any]:
    """Return the header of an inversion that a runtime writes.

    The runtime puts in the prompt, the iterations, the SHA-256 of the image's file and its own name
    among the versions.
    """
    box = (0, 0, *size)
    made = Provenance(None, settings.table(model), {"nti": __version__})
    w = model.config.guidance_scale
    placement = Placement(original=size, taken=box, size=size, filled=box)
    header = Header("", settings.method, w, model.config.name, placement, made, [])
    return header_words(header, model.fingerprint)


def function_entry(
    function: Function, outputs: tuple[Tensor, ...], files: dict[str, str]
) -> FunctionEntry:
    """Describe a function by tensors that went in and came out."""
    return FunctionEntry(
        [Port.of(name, tensor) for name, tensor in function.inputs.items()],
        [Port.of(name, x) for name, x in zip(function.outputs, outputs, strict=True)],
        files,
    )


def file_entry(path: Path) -> dict[str, Any]:
    """Return a file's SHA-256 and size."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": found, "bytes": path.stat().st_size}


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write it. It is the last file of an export, so a folder without one is unfinished."""
    text = json.dumps(asdict(manifest), indent=1, sort_keys=True)
    write_file(folder / NAME, text.encode() + b"\n")


def is_export(folder: Path) -> bool:
    """Whether a folder holds an export, of this format or another."""
    try:
        found = decode((folder / NAME).read_bytes(), dict[str, Any], "manifest")
    except (OSError, ValueError):
        return False
    return str(found.get("format")).startswith("nti-export-")


def instructions() -> list[str]:
    """Return what this processor knows, as Linux names it; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    named = (line.partition(":") for line in lines)
    return next((sorted(words.split()) for name, _, words in named if name.strip() in FLAGS), [])


def read_manifest(folder: Path) -> Manifest:
    """Read it. ExportError for a folder without one, or for one that cannot be read."""
    path = folder / NAME
    if not path.is_file():
        raise ExportError(
            f"{folder}: got no {NAME}, expected a folder that `nti export` has finished"
        )
    try:
        found = decode(path.read_bytes(), dict[str, Any], "manifest")
        if found.get("format") != FORMAT:
            raise ValueError(f"got format {found.get('format')!r}, expected {FORMAT}")
        return convert(found, Manifest, "manifest")
    except ValueError as error:
        raise ExportError(f"{path}: {error}: export anew") from error
