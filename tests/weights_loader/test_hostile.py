"""Files that are no checkpoints, or odd ones. Chance's share is tests/fuzz."""

from pathlib import Path

import pytest
import torch
from nti.weights_loader import CheckpointError

import nti
from checkpoints import single_file
from fuzz import outcome, without_tokenizer
from nti.inspection import describe_file
from nti.model import CONFIG_KEY, StableDiffusion
from readers import SMALLEST
from tiny import make_model


@pytest.fixture(scope="module")
def smallest() -> StableDiffusion:
    return make_model(SMALLEST, torch.float32)


def joined(header: bytes, body: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + body


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
    with without_tokenizer():
        assert outcome(lambda: nti.load_model(path, device="cpu"), (CheckpointError,), path) == (
            "refused"
        )
        found = outcome(lambda: describe_file(path), (CheckpointError,), path)
        assert found in ("read", "refused")
        if found == "read":  # it is described with all that is wrong
            assert "problem: missing" in describe_file(path)


def test_a_scalar_where_three_projections_are_joined(
    smallest: StableDiffusion, tmp_path: Path
) -> None:
    key = "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"
    metadata = {CONFIG_KEY: SMALLEST.to_json()}
    path = tmp_path / "x.safetensors"
    single_file(smallest, path, extra={key: torch.tensor(1.0)}, metadata=metadata)
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
