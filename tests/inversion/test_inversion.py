import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nti import Inversion, Placement
from nti.inversion.inversion import InversionFileError


def test_what_is_saved_is_loaded_bit_by_bit(inversion: Inversion, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "x.nti.safetensors"
    odd = dataclasses.replace(inversion, prompt='a "cat" \u00e9 \U0001f431\nat night')
    odd.save(path)
    assert Inversion.load(path) == odd
    assert Inversion.load(path) != inversion
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_where_the_image_lay_is_saved(inversion: Inversion, tmp_path: Path) -> None:
    path = tmp_path / "x"
    placed = dataclasses.replace(
        inversion, placement=Placement.create((640, 427), (128, 64), "pad")
    )
    placed.save(path)
    assert Inversion.load(path) == placed != inversion
    assert Inversion.load(path).placement == placed.placement


def test_shapes_are_in_sampling_order(inversion: Inversion) -> None:
    assert inversion.steps == 10
    assert inversion.uncond.shape == (10, 77, 24)
    assert inversion.pivot.shape == inversion.latents.shape == (11, 4, 8, 8)
    assert torch.equal(inversion.pivot[0], inversion.latents[0])


def test_lengths_that_do_not_belong_together_are_refused(inversion: Inversion) -> None:
    with pytest.raises(ValueError, match=r"got 10 embeddings .* \(10, 11, 10\)"):
        dataclasses.replace(inversion, pivot=inversion.pivot[1:])


def test_other_files_say_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(InversionFileError, match="no such file"):
        Inversion.load(tmp_path / "none")
    save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InversionFileError, match="without 'inversion' in its metadata"):
        Inversion.load(tmp_path / "other.safetensors")
    (tmp_path / "text").write_text("not a tensor in sight")
    with pytest.raises(InversionFileError, match="not a saved inversion"):
        Inversion.load(tmp_path / "text")


def test_a_truncated_file_is_an_error(inversion: Inversion, tmp_path: Path) -> None:
    path = tmp_path / "x"
    inversion.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InversionFileError, match="not a saved inversion"):
        Inversion.load(path)


def test_nan_equals_nan_and_nothing_else(inversion: Inversion) -> None:
    losses = inversion.losses.clone()
    losses[0, 0] = torch.nan
    nan = dataclasses.replace(inversion, losses=losses)
    losses = losses.clone()
    losses[0, 0] = -1.0
    assert nan == dataclasses.replace(nan, losses=nan.losses.clone())
    assert nan != dataclasses.replace(nan, losses=losses)
    assert inversion != dataclasses.replace(inversion, pivot=inversion.pivot.float())
