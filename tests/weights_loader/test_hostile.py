"""Whatever a file holds, it loads or a CheckpointError names it, and soon."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from nti.weights_loader import CheckpointError, read_metadata
from safetensors import safe_open

import nti
from checkpoints import directory, single_file
from mutations import mutate_bytes, mutate_json
from nti.config import ModelConfig
from nti.inspection import describe_file
from nti.model import CONFIG_KEY, StableDiffusion, locate
from tiny import TINY, make_model

SMALLEST = dataclasses.replace(
    TINY,
    name="smallest",
    unet=dataclasses.replace(TINY.unet, channels=8, heads=2, norm_groups=4, context_dim=4),
    vae=dataclasses.replace(TINY.vae, channels=4, channel_multipliers=(1, 1)),
    text=dataclasses.replace(TINY.text, width=4, heads=2, layers=1),
    vocabulary=("a", "cat"),
)

SECONDS = 10

USES: tuple[Callable[[Path], object], ...] = (
    lambda path: nti.load_model(path, device="cpu", backend="reference", execution="eager"),
    describe_file,
    lambda path: (read_metadata(path), locate(path)),
)


@pytest.fixture(scope="module")
def smallest() -> StableDiffusion:
    return make_model(SMALLEST, torch.float32)


@pytest.fixture(scope="module")
def checkpoint(smallest: StableDiffusion, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("hostile") / "x.safetensors"
    metadata = {CONFIG_KEY: SMALLEST.to_json(), "modelspec.prediction_type": "epsilon"}
    return single_file(smallest, path, dtype=torch.float16, metadata=metadata).read_bytes()


@pytest.fixture(autouse=True)
def no_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads open_clip's merges for a tenth of a second, and nothing of the file."""
    monkeypatch.setattr("nti.model.Tokenizer", lambda context_length: None)
    monkeypatch.setattr("nti.model.SD_V1", SMALLEST)


def split(data: bytes) -> tuple[bytes, bytes]:
    end = 8 + int.from_bytes(data[:8], "little")
    return data[8:end], data[end:]


def joined(header: bytes, body: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + body


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def outcome(path: Path, use: Callable[[Path], object]) -> str:
    """Use a file: `loads`, or how it is refused; anything else fails."""
    began = time.monotonic()
    try:
        use(path)
        return "loads"
    except CheckpointError as error:
        message = str(error)
        assert str(path) in message or str(path.parent) in message
        assert len(message) < 10_000
        assert all(character.isprintable() for character in message.replace("\n  ", ""))
        return "refused"
    finally:
        assert time.monotonic() - began < SECONDS


def outcomes(
    path: Path, cases: int, damaged: Callable[[Random], bytes], target: Path | None = None
) -> set[str]:
    """Damage a file again and again, and use it, or the `target` that it is a part of."""
    found = set()
    for seed in range(cases):
        path.write_bytes(damaged(Random(seed)))
        try:
            found.add(outcome(target or path, USES[seed % len(USES)]))
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    return found


def test_the_undamaged_file_loads(checkpoint: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(checkpoint)
    assert {outcome(path, use) for use in USES} == {"loads"}


def test_damaged_bytes_of_the_header(checkpoint: bytes, tmp_path: Path) -> None:
    header, body = split(checkpoint)

    def damaged(random: Random) -> bytes:
        if random.random() < 0.3:
            return mutate_bytes(checkpoint[: 8 + len(header)], random) + body
        return joined(mutate_bytes(header, random), body)

    assert outcomes(tmp_path / "x.safetensors", 80, damaged) >= {"refused"}


def test_damaged_entries_of_the_header(checkpoint: bytes, tmp_path: Path) -> None:
    header, body = split(checkpoint)
    entries = json.loads(header)

    def damaged(random: Random) -> bytes:
        return joined(dumped(mutate_json(entries, random)), body)

    assert outcomes(tmp_path / "x.safetensors", 60, damaged) >= {"refused"}


def test_a_damaged_configuration(checkpoint: bytes, tmp_path: Path) -> None:
    header, body = split(checkpoint)
    entries, fields = json.loads(header), json.loads(SMALLEST.to_json())

    def damaged(random: Random) -> bytes:
        text = json.dumps(mutate_json(fields, random))
        if random.random() < 0.1:
            text = mutate_bytes(text.encode(), random).decode("utf-8", "replace")
        metadata = entries["__metadata__"] | {CONFIG_KEY: text}
        return joined(dumped(entries | {"__metadata__": metadata}), body)

    assert outcomes(tmp_path / "x.safetensors", 120, damaged) == {"loads", "refused"}


DESCRIPTIONS = {
    "scheduler/scheduler_config.json": {
        "prediction_type": "epsilon", "beta_start": 0.00085, "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "trained_betas": None,
    },
    "unet/config.json": {"in_channels": 4, "block_out_channels": [8, 16], "act_fn": "silu"},
    "vae/config.json": {"scaling_factor": 0.5, "shift_factor": 0, "latents_mean": None},
    "text_encoder/config.json": {"hidden_act": "quick_gelu", "text_config": {"hidden_size": 4}},
}  # fmt: skip


@pytest.mark.parametrize("file", DESCRIPTIONS)
def test_a_damaged_description(smallest: StableDiffusion, tmp_path: Path, file: str) -> None:
    path = directory(smallest, tmp_path / "x", dtype=torch.float16)
    (path / file).parent.mkdir(exist_ok=True)

    def damaged(random: Random) -> bytes:
        text = dumped(mutate_json(DESCRIPTIONS[file], random))
        return mutate_bytes(text, random) if random.random() < 0.3 else text

    assert outcomes(path / file, 15, damaged, path) == {"loads", "refused"}


def test_a_damaged_index(smallest: StableDiffusion, tmp_path: Path) -> None:
    path = directory(smallest, tmp_path / "x", dtype=torch.float16)
    weights = path / "vae" / "diffusion_pytorch_model.safetensors"
    shard = weights.rename(weights.with_name("one.safetensors"))
    with safe_open(shard, framework="pt") as file:
        keys: list[str] = file.keys()
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(keys, shard.name)}

    def damaged(random: Random) -> bytes:
        text = dumped(mutate_json(index, random))
        return mutate_bytes(text, random) if random.random() < 0.3 else text

    file = weights.with_name(f"{weights.name}.index.json")
    assert outcomes(file, 30, damaged, path) == {"loads", "refused"}


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\0", b"\0" * 8, b"\xff" * 8, joined(b"{}", b""), b"PK\x03\x04" + b"\0" * 100,
        (2**40).to_bytes(8, "little") + b"{}", joined(b"[]", b""), joined(b"null", b""),
        joined(b'{"__metadata__": 3}', b""), joined(b"[" * 10**5, b""),
        joined(b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}', b""),
        joined(b'{"a":{"dtype":"F8_E4M3","shape":[],"data_offsets":[0,1]}}', b"\0"),
        joined(b'{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}', b"\0"),
        joined(b'{"a":{"dtype":"F32","shape":[4294967296,0],"data_offsets":[0,0]}}', b""),
    ],
    ids=lambda data: data[:40].hex(),
)  # fmt: skip
def test_files_that_are_none(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    for use in USES[:2]:
        if outcome(path, use) == "loads":  # it is described with all that is wrong
            assert use is describe_file and "problem: missing" in describe_file(path)


def test_a_scalar_where_three_projections_are_joined(
    smallest: StableDiffusion, tmp_path: Path
) -> None:
    key = "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"
    path = single_file(smallest, tmp_path / "x.safetensors", extra={key: torch.tensor(1.0)})
    with pytest.raises(CheckpointError, match=r"q_proj.weight .*: got shape \(\)"):
        nti.load_model(path, device="cpu")


def test_what_a_terminal_would_obey_is_not_printed(
    smallest: StableDiffusion, tmp_path: Path
) -> None:
    metadata = {
        CONFIG_KEY: SMALLEST.to_json(),
        "a\x1b[2J": "b\nproblem: none\x1b[2J",
        "tags": "x" * 10**6,
    }
    path = single_file(
        smallest, tmp_path / "x.safetensors", metadata=metadata, extra={"\x1b[2J": torch.ones(1)}
    )
    text = describe_file(path)
    assert len(text) < 3000
    assert "\x1b" not in text and r"metadata a\x1b[2J: b\nproblem: none\x1b[2J" in text
    with pytest.raises(CheckpointError, match="unknown key") as error:
        nti.load_model(path, device="cpu")
    assert "\x1b" not in str(error.value)


def test_damage_is_the_same_in_every_run() -> None:
    fields = json.loads(ModelConfig.to_json(SMALLEST))
    data = dumped(fields)
    for seed in range(20):
        assert mutate_bytes(data, Random(seed)) == mutate_bytes(data, Random(seed))
        first, second = (dumped(mutate_json(fields, Random(seed))) for _ in range(2))
        assert first == second
    assert dumped(fields) == data
