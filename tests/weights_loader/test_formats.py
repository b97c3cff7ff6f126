"""Formats that people have besides the plain ones, and what messages advise, followed."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from nti.weights_loader import CheckpointError
from safetensors.torch import load_file, save_file
from torch import Tensor

import nti
from checkpoints import assert_same, directory, single_file, spelled
from nti.model import StableDiffusion

pytestmark = pytest.mark.usefixtures("sd_v1_is_small")

MIXED, MIXED_ALONE = 4, 5


def linear(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Store the autoencoder's attention as linear layers, as converters leave it."""
    return {
        key: value[:, :, 0, 0].contiguous() if "attn_1.to_" in key and value.ndim == 4 else value
        for key, value in tensors.items()
    }


@pytest.mark.parametrize("flat", [True, False], ids=["linear", "convolution"])
def test_diffusers_attention_names_in_the_original_layout(
    small: StableDiffusion, tmp_path: Path, flat: bool
) -> None:
    mixed, alone = (spelled(small, "vae", layout) for layout in (MIXED, MIXED_ALONE))
    assert "first_stage_model.decoder.mid.attn_1.to_out.0.weight" in mixed
    if flat:
        mixed, alone = linear(mixed), linear(alone)
        assert mixed["first_stage_model.decoder.mid.attn_1.to_q.weight"].ndim == 2
    path = single_file(small, tmp_path / "x.safetensors", without="first_stage_model.", extra=mixed)
    assert_same(nti.load_model(path, device="cpu"), small)
    save_file(alone, tmp_path / "vae.safetensors")
    bare = single_file(small, tmp_path / "y.safetensors", without="first_stage_model.")
    assert_same(nti.load_model(bare, vae=tmp_path / "vae.safetensors", device="cpu"), small)


CLIP = {
    "text_projection.weight": (24, 24),
    "text_projection": (24, 24),
    "visual_projection.weight": (24, 32),
    "logit_scale": (),
    "vision_model.embeddings.class_embedding": (32,),
    "vision_model.encoder.layers.0.mlp.fc1.weight": (64, 32),
}


@pytest.mark.parametrize("text_layout", [2, 3], ids=["text_model", "without-text_model"])
def test_a_whole_clip_in_a_folder(small: StableDiffusion, tmp_path: Path, text_layout: int) -> None:
    path = directory(small, tmp_path / "x", text_layout=text_layout)
    file = path / "text_encoder" / "model.safetensors"
    save_file(load_file(file) | {key: torch.ones(shape) for key, shape in CLIP.items()}, file)
    assert_same(nti.load_model(path, device="cpu"), small)
    save_file(load_file(file) | {"vision_tower.weight": torch.ones(1)}, file)
    with pytest.raises(CheckpointError, match="unknown key vision_tower.weight"):
        nti.load_model(path, device="cpu")


@pytest.mark.parametrize("root", ["cond_stage_model.", "cond_stage_model.transformer."])
def test_a_whole_clip_in_a_single_file(small: StableDiffusion, tmp_path: Path, root: str) -> None:
    extra = {root + key: torch.ones(shape) for key, shape in CLIP.items()}
    path = single_file(small, tmp_path / "x.safetensors", extra=extra)
    assert_same(nti.load_model(path, device="cpu"), small)


def sharded(folder: Path, index: str = ".safetensors.index.json", count: int = 3) -> Path:
    """Split a folder's weights over files and write their index."""
    (whole,) = folder.glob("*.safetensors")
    tensors = load_file(whole)
    stem, places = whole.stem, {}
    for i in range(count):
        name = f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors"
        part = dict(list(tensors.items())[i::count])
        save_file(part, folder / name)
        places |= dict.fromkeys(part, name)
    whole.unlink()
    path = folder / f"{stem}{index}"
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return path


@pytest.mark.parametrize(
    "index",
    [".safetensors.index.json", ".safetensors.index.fp16.json", ".safetensors.fp16.index.json"],
)
def test_networks_in_several_files(small: StableDiffusion, tmp_path: Path, index: str) -> None:
    path = directory(small, tmp_path / "x")
    for folder in ("unet", "vae", "text_encoder"):
        sharded(path / folder, index)
    assert_same(nti.load_model(path, device="cpu"), small)


def test_an_autoencoder_in_several_files_over_another(
    small: StableDiffusion, tmp_path: Path
) -> None:
    path, other = (directory(small, tmp_path / name) for name in ("x", "y"))
    index = sharded(other / "vae")
    for vae in (other, other / "vae", index):
        assert_same(nti.load_model(path, vae=vae, device="cpu"), small)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("../x.safetensors", r"got a file '\.\./x.safetensors', expected the plain name"),
        ("/etc/x.safetensors", "got a file '/etc/x.safetensors', expected the plain name"),
        (r"..\\x.safetensors", "expected the plain name"),
        ("..", r"got a file '\.\.', expected the plain name"),
        ("x\0.safetensors", "expected the plain name"),
        ("\u00e9" * 125 + ".safetensors", "expected the plain name"),  # 262 bytes
        ("passwd.bin", "expected the plain name of a .safetensors file"),
        ("gone.safetensors", "got no gone.safetensors, expected every file"),
        ("", "weight_map.* expected `str` of length >= 1"),
        (3, "weight_map.* expected `str`, got `int`"),
        (None, "weight_map.* expected `str`, got `null`"),
    ],
    ids=[
        "parent",
        "absolute",
        "backslash",
        "dots",
        "nul",
        "long",
        "bin",
        "gone",
        "empty",
        "int",
        "null",
    ],
)
def test_an_index_that_names_another_file_is_refused(
    small: StableDiffusion, tmp_path: Path, change: object, message: str
) -> None:
    path = directory(small, tmp_path / "x")
    index = sharded(path / "unet")
    fields = json.loads(index.read_text())
    fields["weight_map"]["conv_in.weight"] = change
    index.write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match=f"index.json: .*{message}"):
        nti.load_model(path, device="cpu")


def test_an_index_that_disagrees_with_its_files_is_refused(
    small: StableDiffusion, tmp_path: Path
) -> None:
    path = directory(small, tmp_path / "x")
    index = sharded(path / "unet")
    fields = json.loads(index.read_text())
    places = fields["weight_map"]
    other = next(name for name in places.values() if name != places["conv_in.weight"])
    for weight_map, message in (
        (places | {"conv_in.weight": other}, "conv_in.weight"),
        (places | {"extra": other}, f"{other} lacks 'extra'"),
        ({k: v for k, v in places.items() if k != "conv_in.bias"}, "unlike the index, 'conv_in.b"),
        ({}, "got 0 files, expected 1 to 64"),
        ({str(i): f"{i}.safetensors" for i in range(65)}, "got 65 files, expected 1 to 64"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(CheckpointError, match=f"index.json: .*{message}"):
            nti.load_model(path, device="cpu")
    for text in ("", "[]", "{}", "null", '{"weight_map": []}', "{" * 10**5):
        index.write_text(text)
        with pytest.raises(CheckpointError, match="index.json: "):
            nti.load_model(path, device="cpu")


def test_a_shard_that_is_no_safetensors_file_is_named(
    small: StableDiffusion, tmp_path: Path
) -> None:
    path = directory(small, tmp_path / "x")
    sharded(path / "unet")
    shard = sorted((path / "unet").glob("*-00002-*"))[0]
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=f"{shard.name}: not a safetensors file"):
        nti.load_model(path, device="cpu")


def test_a_file_of_moving_averages_alone_says_so(small: StableDiffusion, tmp_path: Path) -> None:
    extra = {"model_ema.diffusion_modelout2weight": torch.ones(3)}
    path = single_file(
        small, tmp_path / "x.safetensors", without="model.diffusion_model.", extra=extra
    )
    with pytest.raises(CheckpointError, match=r"got EMA weights alone \(model_ema\.\*\)"):
        nti.load_model(path, device="cpu")
    whole = single_file(small, tmp_path / "y.safetensors", without="first_stage_model.")
    assert_same(nti.load_model(whole, vae=path, device="cpu"), small)


def follow(path: Path, folder: Path) -> None:
    """Do what the message about a pickle advises, to the letter."""
    with pytest.raises(CheckpointError, match="never unpickled") as error:
        nti.load_model(path, device="cpu")
    assert "\n" not in str(error.value)
    command = str(error.value).split("convert it by ")[1]
    assert command.startswith("python -c ")
    here = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(command, shell=True, cwd=folder, check=True, env=os.environ | {"PATH": here})


def pickled(folder: Path, *names: str) -> None:
    """Put a folder's weights into pickles instead."""
    (whole,) = folder.glob("*.safetensors")
    tensors = load_file(whole)
    for i, name in enumerate(names):
        torch.save(dict(list(tensors.items())[i :: len(names)]), folder / name)
    whole.unlink()


@pytest.mark.parametrize("name", ["sd.ckpt", 'it\'s $5 "off".ckpt', "a b.pt"])
def test_the_advice_for_a_single_pickle_works(
    small: StableDiffusion, tmp_path: Path, name: str
) -> None:
    weights = spelled(small, "unet") | spelled(small, "vae") | spelled(small, "text")
    key = "model.diffusion_model.out.2.weight"
    strided = {key: weights[key].to(memory_format=torch.channels_last)}
    torch.save({"state_dict": weights | strided, "epoch": 3}, tmp_path / name)
    follow(tmp_path / name, tmp_path)
    found = (tmp_path / name).with_suffix(".safetensors")
    assert_same(nti.load_model(found, device="cpu"), small)


@pytest.mark.parametrize(
    ("folder", "names"),
    [
        ("unet", ["diffusion_pytorch_model.bin"]),
        ("text_encoder", ["pytorch_model.bin"]),
        ("text_encoder", ["pytorch_model.fp16.bin"]),
        ("text_encoder", ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]),
        ("unet", ["weights.pt"]),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_the_advice_for_a_folders_pickles_works(
    small: StableDiffusion, tmp_path: Path, folder: str, names: list[str]
) -> None:
    path = directory(small, tmp_path / "x")
    pickled(path / folder, *names)
    (path / folder / "a_optimizer.bin").write_bytes(b"not weights")
    if names == ["weights.pt"]:
        (path / folder / "a_optimizer.bin").unlink()
    follow(path, path / folder)
    assert_same(nti.load_model(path, device="cpu"), small)


def test_the_full_precision_pickle_is_converted_where_both_are_there(
    small: StableDiffusion, tmp_path: Path
) -> None:
    path = directory(small, tmp_path / "x")
    pickled(path / "unet", "diffusion_pytorch_model.bin")
    torch.save({"half": torch.ones(1)}, path / "unet" / "diffusion_pytorch_model.fp16.bin")
    follow(path, path / "unet")
    assert_same(nti.load_model(path, device="cpu"), small)


def test_every_name_that_a_message_expects_is_one_that_loads(
    small: StableDiffusion, tmp_path: Path
) -> None:
    path = directory(small, tmp_path / "x")
    file = path / "vae" / "diffusion_pytorch_model.safetensors"
    held = file.rename(tmp_path / "held")
    with pytest.raises(CheckpointError, match="expected one of ") as error:
        nti.load_model(path, device="cpu")
    names = str(error.value).split("expected one of ")[1].split(" (")[0].split(", ")
    assert len(names) == 4
    for name in names:
        held = held.rename(path / "vae" / name)
        assert_same(nti.load_model(path, device="cpu"), small)
