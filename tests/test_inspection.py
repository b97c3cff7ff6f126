import dataclasses
from pathlib import Path

import pytest
import torch
from nti.weights_loader import CheckpointError

from checkpoints import directory, single_file
from nti import Inversion
from nti.inspection import describe_file
from nti.model import StableDiffusion, embedded_checkpoint
from tiny import SD_LIKE, make_model


@pytest.fixture(scope="module")
def small() -> StableDiffusion:
    return make_model(SD_LIKE, torch.float32)


@pytest.fixture(autouse=True)
def sd_v1_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nti.model.SD_V1", SD_LIKE)


def test_the_embedded_checkpoint() -> None:
    text = describe_file(embedded_checkpoint())
    assert "architecture: shapes, 64 channels x (1, 2, 2)" in text
    assert "parameters in F16, layout: original (shapes.safetensors)" in text
    assert "no problem found" in text and "metadata card" in text


def test_layout_dtype_and_parameters_of_a_directory(small: StableDiffusion, tmp_path: Path) -> None:
    path = directory(small, tmp_path / "x", vae_layout=3, dtype=torch.bfloat16)
    text = describe_file(path)
    count = sum(p.numel() for p in small.vae.parameters())
    assert f"autoencoder: {count:,} parameters in BF16, layout: diffusers, old attention" in text
    assert "UNet:" in text and "(diffusion_pytorch_model.safetensors)" in text


def test_problems_are_reported_together_and_without_loading(
    small: StableDiffusion, tmp_path: Path
) -> None:
    nan = {"first_stage_model.quant_conv.bias": torch.full((8,), torch.nan)}
    path = single_file(
        small, tmp_path / "x.safetensors", extra=nan, without="model.diffusion_model.out.2"
    )
    text = describe_file(path)
    assert "problem: missing model.diffusion_model.out.2.weight" in text
    assert "problem: first_stage_model.quant_conv.bias: holds values that are not finite" in text
    assert "no problem" not in text


def test_a_network_that_is_not_there(small: StableDiffusion, tmp_path: Path) -> None:
    path = single_file(small, tmp_path / "x.safetensors", without="first_stage_model.")
    text = describe_file(path)
    assert "autoencoder: not found" in text and "problem: missing the whole network" in text


def test_a_saved_inversion(inversion: Inversion, tmp_path: Path) -> None:
    inversion.save(tmp_path / "x.nti.safetensors")
    text = describe_file(tmp_path / "x.nti.safetensors")
    assert "prompt: a cat sitting next to a mirror" in text and "10 steps" in text
    assert f"inner iterations: {sum(inversion.iterations)}" in text
    assert inversion.made is not None and inversion.made.image_sha256 is not None
    assert f"image: SHA-256 {inversion.made.image_sha256}" in text
    assert "noise_at target" in text and f"torch {torch.__version__}" in text
    assert "offsets" not in text
    for method, kept, told in (
        ("prompt-tuning", {"cond": inversion.uncond.clone()}, "prompt embeddings: (10, 77, 24)"),
        ("edit-friendly", {"offsets": inversion.pivot[1:].clone()}, "offsets: (10, 4, 8, 8)"),
    ):
        path = tmp_path / f"{method}.nti.safetensors"
        dataclasses.replace(inversion, method=method, **kept).save(path)
        assert told in describe_file(path)


def test_a_saved_inversion_of_format_1_and_words_that_a_terminal_would_obey(
    inversion: Inversion, tmp_path: Path
) -> None:
    odd = dataclasses.replace(inversion, prompt="a\x1b[2Jcat", weights=None, made=None)
    odd.save(tmp_path / "x.nti.safetensors")
    text = describe_file(tmp_path / "x.nti.safetensors")
    assert "prompt: a\\x1b[2Jcat" in text and "does not say with which weights" in text


def test_a_file_of_another_kind_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        describe_file(tmp_path / "none.safetensors")
