"""Checkpoints of the inpainting model, known by the nine input channels of their UNet."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from nti.weights_loader import CheckpointError

import nti
from checkpoints import assert_same, directory, single_file
from nti.config import SD_V1, ModelConfig
from nti.inspection import describe_file
from nti.model import CONFIG_KEY, StableDiffusion, locate, parameter_shapes, skeletons
from tiny import INPAINTING, SD_LIKE, TINY, make_model

pytestmark = pytest.mark.usefixtures("sd_v1_is_small")


@pytest.fixture(scope="module")
def wide() -> StableDiffusion:
    return make_model(SD_LIKE.for_inpainting(), torch.float32)


def test_one_file_loads(wide: StableDiffusion, tmp_path: Path) -> None:
    path = single_file(wide, tmp_path / "x.safetensors")
    model = nti.load_model(path, device="cpu")
    assert_same(model, wide)
    assert model.config.inpaints and model.config.name == "tiny inpainting"
    assert "takes a mask and a masked image" in describe_file(path)


def test_a_directory_loads(wide: StableDiffusion, tmp_path: Path) -> None:
    path = directory(wide, tmp_path / "x")
    assert_same(nti.load_model(path, device="cpu"), wide)
    (path / "unet" / "config.json").write_text(json.dumps({"in_channels": 9, "out_channels": 4}))
    assert_same(nti.load_model(path, device="cpu"), wide)
    (path / "unet" / "config.json").write_text(json.dumps({"in_channels": 4}))
    with pytest.raises(CheckpointError, match=r"unet/config.json: in_channels: got 4, expected 9"):
        nti.load_model(path, device="cpu")


def test_a_configuration_of_our_own_says_how_many_channels(tmp_path: Path) -> None:
    model = make_model(INPAINTING, torch.float32)
    text = INPAINTING.to_json()
    path = single_file(model, tmp_path / "x.safetensors", metadata={CONFIG_KEY: text})
    assert nti.load_model(path, device="cpu").config == INPAINTING
    path = single_file(model, path, metadata={CONFIG_KEY: TINY.to_json()})
    with pytest.raises(CheckpointError, match=r"got shape \(16, 9, 3, 3\), expected \(16, 4, 3, 3"):
        nti.load_model(path, device="cpu")


def test_a_configuration_that_says_nothing_of_them_has_none() -> None:
    fields = json.loads(TINY.to_json())
    del fields["unet"]["additional_channels"]
    assert ModelConfig.from_json(json.dumps(fields)) == TINY
    for value in (-1, 65, 1.5):
        fields["unet"]["additional_channels"] = value
        with pytest.raises(ValueError, match="additional_channels"):
            ModelConfig.from_json(json.dumps(fields))


def test_they_are_part_of_a_fingerprint_only_where_there_are_some(wide: StableDiffusion) -> None:
    """Inversions that were saved before there were any are still known by their weights."""
    assert "additional_channels" not in make_model(TINY).fingerprint.numbers["unet"]
    assert wide.fingerprint.numbers["unet"]["additional_channels"] == 5


def test_the_file_is_described_as_sd_v1_is(small: StableDiffusion, tmp_path: Path) -> None:
    assert not locate(single_file(small, tmp_path / "x.safetensors"))[1].inpaints
    assert SD_V1.for_inpainting().unet.input_channels == 9
    assert skeletons(SD_V1.for_inpainting())["unet"].conv_in.weight.shape == (320, 9, 3, 3)
    shapes, theirs = (
        parameter_shapes(skeletons(config)["unet"]) for config in (SD_V1, SD_V1.for_inpainting())
    )
    assert {name for name in shapes if shapes[name] != theirs[name]} == {"conv_in.weight"}


def test_additional_channels_of_another_kind_do_not_inpaint() -> None:
    unet = dataclasses.replace(TINY.unet, additional_channels=4)
    assert not dataclasses.replace(TINY, unet=unet).inpaints
