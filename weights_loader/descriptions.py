"""What is written of a model beside its weights, read whole: what can be honoured is returned, and
whatever contradicts the model that would be built is refused by name.
"""

import re
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from nti.weights_loader.checkpoint_file import (
    CheckpointError,
    read_header,
    read_json,
    read_metadata,
    read_text,
)
from nti.weights_loader.diffusers_config import contradictions
from nti.weights_loader.recognise import what_else

__all__ = ["Description", "described"]

EPSILON, VELOCITY = "epsilon", "v_prediction"

Table = Mapping[str, tuple[str, Any]]
"""By the source's name of a field: this project's, and either the type and bounds of a number or
this project's words by those of the source. No name: nothing but these words can be honoured."""

STEPS = Annotated[int, Meta(ge=2, le=10_000)]
BETA = Annotated[float, Meta(gt=0, lt=1)]
SCALE = Annotated[float, Meta(gt=0, le=1000)]
NO: Mapping[object, str] = {False: "", "False": ""}

SCHEDULER: Table = {
    "prediction_type": ("prediction", {EPSILON: EPSILON, VELOCITY: VELOCITY}),
    "beta_schedule": ("beta_schedule", {"scaled_linear": "scaled_linear", "linear": "linear"}),
    "beta_start": ("beta_start", BETA),
    "beta_end": ("beta_end", BETA),
    "num_train_timesteps": ("train_steps", STEPS),
    "rescale_betas_zero_snr": ("", NO),
    "trained_betas": ("", {}),
}
"""Of `scheduler_config.json`. What else it holds is about samplers and not about the model."""

AUTOENCODER: Table = {
    "scaling_factor": ("scale", SCALE),
    "shift_factor": ("", {0: ""}),
}
"""Of `vae/config.json`, besides the architecture."""

YAML: Table = {
    "parameterization": ("prediction", {"eps": EPSILON, "v": VELOCITY}),
    "beta_schedule": ("beta_schedule", {"linear": "scaled_linear"}),  # its word for SD v1's
    "linear_start": ("beta_start", BETA),
    "linear_end": ("beta_end", BETA),
    "timesteps": ("train_steps", STEPS),
    "scale_factor": ("scale", SCALE),
}
"""Of the file that lies beside a single checkpoint under its name; its shapes are the weights'."""

METADATA: Table = {
    "modelspec.prediction_type": (
        "prediction",
        {"epsilon": EPSILON, "eps": EPSILON, "v": VELOCITY, "v_prediction": VELOCITY},
    ),
    "ss_v_parameterization": ("prediction", {"False": EPSILON, "True": VELOCITY}),
    "ss_zero_terminal_snr": ("", NO),
}
"""Of a safetensors header, as trainers write it."""


@dataclass(frozen=True)
class Description:
    """What is said of a model; by this project's names of the fields, and only what is said."""

    schedule: Mapping[str, Any]
    """`train_steps`, `beta_start`, `beta_end`, `beta_schedule`, `prediction`."""
    scale: float | None
    """Of the autoencoder's latents."""
    sources: str
    """What says it, for an error."""


@dataclass(frozen=True)
class Statement:
    """One value, and who says it."""

    field: str
    value: Any
    source: str


def described(
    checkpoint: Path, files: Mapping[str, Path], config: Mapping[str, Any]
) -> Description:
    """Read what is written beside the weights, after a look at what they are.

    Args:
        checkpoint: the single file, or the directory in diffusers' layout.
        files: of each network.
        config: the model that the weights are taken for, by parts and fields (`dataclasses.asdict`
            of a `ModelConfig`).

    Raises:
        CheckpointError: a file that is recognised as something other than a Stable Diffusion v1
        checkpoint, or a description that cannot be honoured; it names the file and the field.

    """
    headers = {path: read_header(path) for path in dict.fromkeys(files.values())}
    for path, header in headers.items():
        if other := what_else({key: tensor.shape for key, tensor in header.items()}):
            raise CheckpointError(f"{path}: {other}")
    said = list(_of_header(files["unet"], headers[files["unet"]]))
    if checkpoint.is_dir():
        said += _of_json(checkpoint / "scheduler" / "scheduler_config.json", SCHEDULER)
    else:
        said += _of_yaml(checkpoint.with_suffix(".yaml"))
    own: list[Statement] = []
    for network, path in files.items():
        beside = network == "vae" and path.name.startswith("diffusion_pytorch_model")
        if path.parent.parent == checkpoint or beside:
            own += _of_folder(network, path.parent / "config.json", config)
    # What a folder says of its autoencoder counts where the file beside describes another one.
    return _agreed([s for s in said if not own or s.field != own[0].field] + own)


def _of_header(path: Path, keys: Mapping[str, Any]) -> Iterator[Statement]:
    yield from _statements(f"{path}: metadata", read_metadata(path), METADATA)
    if "v_pred" in keys:
        yield Statement("prediction", VELOCITY, f"{path}: key 'v_pred'")


def _of_json(path: Path, table: Table) -> Iterator[Statement]:
    if path.is_file():
        yield from _statements(str(path), read_json(path, dict[str, Any]), table)


def _of_folder(network: str, path: Path, config: Mapping[str, Any]) -> Iterator[Statement]:
    if not path.is_file():
        return
    fields = read_json(path, dict[str, Any])
    if found := next(contradictions(network, fields, config), None):
        name, got, expected = found
        raise CheckpointError(
            f"{path}: {name}: got {reprlib.repr(got)}, expected {expected!r}, as {config['name']}"
            " has: choose another model"
        )
    if network == "vae":
        yield from _statements(str(path), fields, AUTOENCODER)


def _of_yaml(path: Path) -> Iterator[Statement]:
    """Read the few lines that are looked for: no more of YAML is understood than `key: value`."""
    if not path.is_file():
        return
    names = "|".join(YAML)
    for number, line in enumerate(read_text(path).decode("utf-8", "replace").splitlines(), 1):
        text = re.sub(r"(^|\s)#.*", "", line)
        if not re.search(rf"\b({names})\b", text):
            continue
        found = re.fullmatch(rf"""\s*(["']?)({names})\1\s*:\s*(["']?)([^"'\s]+)\3\s*""", text)
        if found is None:
            raise CheckpointError(
                f"{path}: line {number}: got {reprlib.repr(line.strip())}, expected"
                f" '{names.replace('|', ' / ')}: value' on a line of its own: write it so"
            )
        yield from _statements(str(path), {found[2]: found[4]}, YAML)


def _statements(source: str, fields: Mapping[str, Any], table: Table) -> Iterator[Statement]:
    """Yield what a source says; null says nothing."""
    for name, (field, kind) in table.items():
        if (value := fields.get(name)) is None:
            continue
        try:
            if isinstance(kind, Mapping):
                value = kind[value]
            else:
                value = msgspec.convert(value, kind, strict=not isinstance(value, str))
        except (KeyError, TypeError, msgspec.ValidationError) as error:
            words = isinstance(kind, Mapping)
            wanted = " or ".join(map(repr, kind)) or "null" if words else str(error)
            raise CheckpointError(
                f"{source}: {name}: got {reprlib.repr(value)}, expected"
                f" {wanted.removeprefix('Expected ')}: choose another model"
            ) from None
        if field:
            yield Statement(field, value, f"{source}: {name}")


def _agreed(statements: list[Statement]) -> Description:
    said: dict[str, Statement] = {}
    for statement in statements:
        first = said.setdefault(statement.field, statement)
        if first.value != statement.value:
            raise CheckpointError(
                f"{statement.source} says {statement.value!r}, but {first.source} says"
                f" {first.value!r}: remove or correct the one that is wrong"
            )
    values = {field: statement.value for field, statement in said.items()}
    scale = values.pop("scale", None)
    return Description(values, scale, ", ".join(s.source for s in said.values()))
