"""The file of a saved inversion: what it holds, what it refuses, and that it never changes."""

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nti import Inversion, InversionFileError, Placement
from nti.inversion import inversion_file
from nti.inversion.tensor_file import write_tensors

GOLDEN = Path(__file__).parent / "golden"
"""Files of formats 1 and 2, as version 0.1.0 wrote them."""


@pytest.fixture(scope="module")
def small(inversion: Inversion) -> Inversion:
    """A small inversion with everything that there is to be saved."""
    assert inversion.made is not None and inversion.weights is not None
    losses = torch.tensor([[0.5, torch.nan], [0.25, 0.125]])
    return dataclasses.replace(
        inversion,
        uncond=inversion.uncond[:2].float(),
        pivot=inversion.pivot[:3].float(),
        latents=inversion.latents[:3].float(),
        losses=losses,
        placement=Placement.create((640, 427), (64, 64), "pad"),
    )


def test_everything_comes_back(small: Inversion, tmp_path: Path) -> None:
    small.save(tmp_path / "x")
    found = Inversion.load(tmp_path / "x")
    assert found == small and found.made == small.made
    assert found.weights is not None and small.weights is not None
    assert found.weights.differing(small.weights) == []
    assert found.weights.numbers == small.weights.numbers
    for network, values in small.weights.samples.items():
        assert torch.equal(found.weights.samples[network], values)


def test_a_reader_without_torch_finds_the_words(small: Inversion, tmp_path: Path) -> None:
    small.save(tmp_path / "x")
    data = (tmp_path / "x").read_bytes()
    entries = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    header = json.loads(entries["__metadata__"]["inversion"])
    assert header["format"] == "nti-inversion-3" and header["iterations"] == [1, 2]
    assert header["made"]["settings"]["steps"] == 10
    assert header["made"]["settings"]["learning_rate"][0] == 1e-2
    assert header["made"]["versions"]["torch"] == torch.__version__
    assert len(header["made"]["image_sha256"]) == 64


def test_the_same_inversion_is_the_same_bytes(small: Inversion, tmp_path: Path) -> None:
    saved = set()
    for _ in range(10):  # safetensors writes several keys of metadata in an order of chance
        small.save(tmp_path / "x")
        saved.add((tmp_path / "x").read_bytes())
    assert len(saved) == 1


def test_no_flipped_bit_goes_unseen(small: Inversion, tmp_path: Path) -> None:
    path = tmp_path / "x"
    small.save(path)
    sound = path.read_bytes()
    draw = random.Random(0)
    for _ in range(251):
        place, bit = draw.randrange(len(sound)), draw.randrange(8)
        damaged = bytearray(sound)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        with pytest.raises(InversionFileError, match="not a saved inversion"):
            Inversion.load(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
def test_half_precision_is_half_the_size(
    small: Inversion, dtype: torch.dtype, tmp_path: Path
) -> None:
    small.save(tmp_path / "whole")
    small.save(tmp_path / "half", dtype=dtype)
    found = Inversion.load(tmp_path / "half")
    for name in ("uncond", "pivot", "latents"):
        values = getattr(found, name)
        assert values.dtype == torch.float32
        assert torch.equal(values, getattr(small, name).to(dtype).float())
    assert torch.equal(found.losses.nan_to_num(), small.losses.nan_to_num())
    saved = sum(getattr(small, name).nbytes for name in ("uncond", "pivot", "latents")) / 2
    sizes = [(tmp_path / name).stat().st_size for name in ("whole", "half")]
    assert sizes[0] - sizes[1] == pytest.approx(saved, abs=100)


def test_half_precision_refuses_what_it_cannot_hold(small: Inversion, tmp_path: Path) -> None:
    large = dataclasses.replace(small, uncond=small.uncond * 1e6)
    with pytest.raises(ValueError, match=r"dtype: got torch.float16, .* all of uncond"):
        large.save(tmp_path / "x", dtype=torch.float16)
    with pytest.raises(ValueError, match="dtype: got torch.int8, expected torch.float16"):
        small.save(tmp_path / "x", dtype=torch.int8)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["format-1", "format-1-without-placement"])
def test_files_of_format_1_are_still_read(name: str) -> None:
    found = Inversion.load(GOLDEN / f"{name}.safetensors")
    assert (found.prompt, found.method, found.guidance_scale) == (
        "a cat \u2013 on snow", "null-text", 7.5,
    )  # fmt: skip
    assert found.uncond.shape == (3, 5, 4) and found.iterations == [2, 1, 2]
    assert found.uncond.sum().item() == pytest.approx(11.8280, abs=1e-4)
    assert found.losses[0].tolist() == pytest.approx([0.4963, 0.7682], abs=1e-4)
    placed = Placement((200, 136), (3, 0, 139, 136), (16, 16), (0, 0, 16, 16))
    assert found.placement == (placed if name == "format-1" else None)
    assert found.made is None and found.weights is None


def test_files_of_format_2_are_still_read() -> None:
    found = Inversion.load(GOLDEN / "format-2.safetensors")
    assert (found.prompt, found.method, found.guidance_scale) == (
        "a cat \u2013 on snow", "null-text", 7.5,
    )  # fmt: skip
    assert found.uncond.shape == (3, 5, 4) and found.iterations == [1, 2, 1]
    assert found.uncond.sum().item() == pytest.approx(0.2132, abs=1e-4)
    assert found.placement == Placement((200, 136), (32, 0, 168, 136), (16, 16), (0, 0, 16, 16))
    assert found.made is not None and found.made.settings["steps"] == 3
    assert found.weights is not None and found.cond is None and found.offsets is None


def test_an_embedding_of_all_timesteps_is_saved_once(small: Inversion, tmp_path: Path) -> None:
    same = dataclasses.replace(small, uncond=small.uncond[:1].repeat(2, 1, 1))
    for name, inversion in (("each", small), ("one", same)):
        inversion.save(tmp_path / name)
        assert Inversion.load(tmp_path / name) == inversion
    sizes = [(tmp_path / name).stat().st_size for name in ("each", "one")]
    assert sizes[0] - sizes[1] == pytest.approx(small.uncond[0].nbytes, abs=100)


def test_what_some_methods_keep_comes_back(small: Inversion, tmp_path: Path) -> None:
    for method, name, values in (
        ("prompt-tuning", "cond", small.uncond * 2),
        ("edit-friendly", "offsets", small.pivot[1:] / 2),
    ):
        kept = dataclasses.replace(small, method=method, **{name: values})
        kept.save(tmp_path / "x")
        assert Inversion.load(tmp_path / "x") == kept != small
        with pytest.raises(ValueError, match=rf"{name}: got \(1, "):
            dataclasses.replace(kept, **{name: values[:1]})
        with pytest.raises(ValueError, match=f"{name}: got some in an inversion by null-text"):
            dataclasses.replace(kept, method="null-text")
        with pytest.raises(ValueError, match=f"{name}: got none in an inversion by {method}"):
            dataclasses.replace(small, method=method)


Change = Callable[[dict[str, Any], dict[str, torch.Tensor]], object]

HOSTILE: dict[str, tuple[Change, str]] = {
    "prompt": (lambda h, t: h.update(prompt=3), "prompt: expected `str`, got `int`"),
    "guidance": (lambda h, t: h.update(guidance_scale="7"), "guidance_scale: expected `float`"),
    "infinite": (lambda h, t: h.update(guidance_scale=10**400), "guidance_scale"),
    "placement": (lambda h, t: h.update(placement=[1]), "placement: expected `object | null`"),
    "box": (lambda h, t: h["placement"].update(taken=[0, 0, 9]), "placement.taken"),
    "outside": (lambda h, t: h["placement"].update(taken=[0, 0, 9, 9**9]), "a box inside"),
    "made": (lambda h, t: h.update(made={"settings": 1}), "made.settings: expected `object`"),
    "no prompt": (lambda h, t: h.pop("prompt"), "missing required field `prompt`"),
    "format": (lambda h, t: h.update(format="nti-inversion-4"), "got format 'nti-inversion-4'"),
    "method": (lambda h, t: h.update(method="magic"), "method: got 'magic'"),
    "nan": (lambda h, t: t["latents"].fill_(torch.nan), "latents: got torch.float32 with values"),
    "inf": (lambda h, t: t["losses"].fill_(torch.inf), "losses: got"),
    "integers": (lambda h, t: t.update(uncond=t["uncond"].int()), "uncond: got torch.int32"),
    "flat": (lambda h, t: t.update(pivot=t["pivot"].flatten()), "pivot: got"),
    "other side": (lambda h, t: t.update(pivot=t["pivot"][..., :2]), "twice"),
    "no tensor": (lambda h, t: t.pop("losses"), "got no losses"),
    "stranger": (lambda h, t: t.update(x=torch.ones(1)), "unknown ones: x"),
    "flat cond": (lambda h, t: t.update(cond=t["uncond"][0].clone()), "cond: got"),
    "odd cond": (lambda h, t: t.update(cond=t["uncond"][:, :3].clone()), "cond: got"),
    "nan offsets": (lambda h, t: t.update(offsets=t["pivot"][1:] * torch.nan), "offsets: got"),
    "no step": (
        lambda h, t: t.update({n: t[n][:1] for n in ("uncond", "pivot", "latents")}),
        "uncond: got (1, 77, 24) for 0 timesteps",
    ),
    "steps": (lambda h, t: t.update(uncond=torch.ones(10_001, 1, 1)), "uncond: got"),
    "weights": (lambda h, t: t.pop("weights.vae"), "expected all of weights.unet"),
    "numbers": (lambda h, t: h["networks"].pop("vae"), "networks unet, text, vae"),
    "no numbers": (lambda h, t: h.pop("networks"), "networks none"),
    "odd numbers": (lambda h, t: h["networks"].update(vae=3), "networks[...]: expected `object`"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_by_field(small: Inversion, name: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    small.save(path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["inversion"])
    del header["digest"]
    tensors = {key: values.clone() for key, values in load_file(path).items()}
    change, message = HOSTILE[name]
    change(header, tensors)
    write_tensors(path, inversion_file.KEY, header, tensors)  # with a digest that is right
    with pytest.raises(InversionFileError, match="not a saved inversion") as error:
        Inversion.load(path)
    assert str(path) in str(error.value) and message in str(error.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{", "[" * 100_000, '{"a":' * 50_000], ids=lambda t: t[:6]
)
def test_metadata_that_is_no_object_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"uncond": torch.ones(1)}, path, metadata={"inversion": text})
    with pytest.raises(InversionFileError, match="metadata inversion: "):
        Inversion.load(path)


def test_a_file_without_a_digest_is_refused(small: Inversion, tmp_path: Path) -> None:
    path = tmp_path / "x"
    small.save(path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["inversion"])
    del header["digest"]
    save_file(load_file(path), path, metadata={"inversion": json.dumps(header)})
    with pytest.raises(InversionFileError, match="got no digest"):
        Inversion.load(path)


def test_a_file_that_is_too_large_is_not_read(
    small: Inversion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.save(tmp_path / "x")
    monkeypatch.setattr("nti.inversion.tensor_file.LARGEST", 1000)
    with pytest.raises(InversionFileError, match="bytes, expected at most 1000"):
        Inversion.load(tmp_path / "x")
