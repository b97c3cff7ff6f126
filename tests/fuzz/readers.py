"""All that reads a stranger's file, with sound files to damage and the errors it may raise."""

import contextlib
import dataclasses
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from nti.weights_loader import CheckpointError
from PIL import Image
from safetensors.torch import save_file

from checkpoints import directory, single_file
from mutations import mutate_bytes, mutate_json
from nti import Inversion, InversionFileError, Placement, StateFile, StateFileError, load_model
from nti.image import Placement as Place
from nti.image import fit_image, open_image
from nti.inspection import describe_file
from nti.inversion.inversion_file import KEY
from nti.inversion.null_text import NullTextState, Timestep
from nti.inversion.published import read_published
from nti.inversion.state import InversionState
from nti.inversion.tensor_file import encode_tensors, read_tensors
from nti.model import CONFIG_KEY, locate
from nti.sampling.step import AdamState
from tiny import TINY, make_model

__all__ = ["READERS", "SMALLEST", "Reader"]

SMALLEST = dataclasses.replace(
    TINY,
    name="smallest",
    unet=dataclasses.replace(TINY.unet, channels=8, heads=2, norm_groups=4, context_dim=4),
    vae=dataclasses.replace(TINY.vae, channels=4, channel_multipliers=(1, 1)),
    text=dataclasses.replace(TINY.text, width=4, heads=2, layers=1),
    vocabulary=("a", "cat"),
)


@dataclass(frozen=True)
class Reader:
    """One reader, set up in a folder of its own."""

    path: Path
    """The file that is damaged."""
    damage: Callable[[Random], bytes]
    read: Callable[[], object]
    errors: tuple[type[Exception], ...]
    """The documented ones."""


def _split(data: bytes) -> tuple[dict[str, object], bytes]:
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def _joined(entries: object, body: bytes) -> bytes:
    header = json.dumps(entries).encode()
    return len(header).to_bytes(8, "little") + header + body


def _any_part(data: bytes, key: str) -> Callable[[Random], bytes]:
    """Damage a safetensors file: its bytes, its header, or the JSON under a key of its metadata."""
    entries, body = _split(data)
    metadata = entries["__metadata__"]
    assert isinstance(metadata, dict)
    inner = json.loads(metadata[key])

    def damage(random: Random) -> bytes:
        kind = random.random()
        if kind < 0.3:
            return mutate_bytes(data, random)
        if kind < 0.5:
            return _joined(mutate_json(entries, random), body)
        text = json.dumps(mutate_json(inner, random))
        if random.random() < 0.1:
            text = mutate_bytes(text.encode(), random).decode("utf-8", "replace")
        return _joined(entries | {"__metadata__": metadata | {key: text}}, body)

    return damage


def _text(value: object) -> Callable[[Random], bytes]:
    """Damage JSON, as a value or as text."""

    def damage(random: Random) -> bytes:
        text = json.dumps(mutate_json(value, random)).encode()
        return mutate_bytes(text, random) if random.random() < 0.3 else text

    return damage


def checkpoint(folder: Path) -> Reader:
    """A single file with a configuration in its metadata."""
    path = folder / "x.safetensors"
    metadata = {CONFIG_KEY: SMALLEST.to_json(), "modelspec.prediction_type": "epsilon"}
    single_file(make_model(SMALLEST, torch.float32), path, dtype=torch.float16, metadata=metadata)
    uses = (
        lambda: load_model(path, device="cpu", backend="reference", execution="eager"),
        lambda: describe_file(path),
    )
    turn = iter(range(10**9))
    return Reader(
        path,
        _any_part(path.read_bytes(), CONFIG_KEY),
        lambda: uses[next(turn) % len(uses)](),
        (CheckpointError, InversionFileError),
    )


DESCRIPTIONS = {
    "scheduler/scheduler_config.json": {
        "prediction_type": "epsilon", "beta_start": 0.00085, "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "trained_betas": None,
    },
    "unet/config.json": {"in_channels": 4, "block_out_channels": [8, 16], "act_fn": "silu"},
    "vae/config.json": {"scaling_factor": 0.5, "shift_factor": 0, "latents_mean": None},
    "text_encoder/config.json": {"hidden_act": "quick_gelu", "text_config": {"hidden_size": 4}},
}  # fmt: skip


def _description(name: str) -> Callable[[Path], Reader]:
    def made(folder: Path) -> Reader:
        root = directory(make_model(SMALLEST, torch.float32), folder / "x", dtype=torch.float16)
        path = root / name
        path.parent.mkdir(exist_ok=True)
        return Reader(path, _text(DESCRIPTIONS[name]), lambda: locate(root), (CheckpointError,))

    return made


def index(folder: Path) -> Reader:
    """The list of a sharded network's files."""
    root = directory(make_model(SMALLEST, torch.float32), folder / "x", dtype=torch.float16)
    weights = root / "vae" / "diffusion_pytorch_model.safetensors"
    keys = list(_split(weights.read_bytes())[0])
    shard = weights.rename(weights.with_name("one.safetensors"))
    names = dict.fromkeys((key for key in keys if key != "__metadata__"), shard.name)
    return Reader(
        weights.with_name(f"{weights.name}.index.json"),
        _text({"metadata": {"total_size": 1}, "weight_map": names}),
        lambda: describe_file(root),
        (CheckpointError,),
    )


def _inversion() -> Inversion:
    g = torch.Generator().manual_seed(0)
    return Inversion(
        "a cat", "prompt-tuning", 7.5, "smallest",
        torch.randn(2, 3, 4, generator=g), torch.randn(3, 4, 2, 2, generator=g),
        torch.randn(3, 4, 2, 2, generator=g), torch.rand(2, 2, generator=g),
        Placement.create((20, 10), (16, 16), "crop"),
        weights=make_model(SMALLEST, torch.float32).fingerprint,
        cond=torch.randn(1, 3, 4, generator=g).repeat(2, 1, 1),  # saved once
    )  # fmt: skip


def inversion(folder: Path) -> Reader:
    """A saved inversion whose digest is wrong after most damages."""
    path = folder / "x.safetensors"
    _inversion().save(path)
    return Reader(
        path, _any_part(path.read_bytes(), KEY), lambda: Inversion.load(path), (InversionFileError,)
    )


def _forged(path: Path, key: str) -> Callable[[Random], bytes]:
    """Damage a header and give it a digest that is right, or damage bytes."""
    sound, data = read_tensors(path, key), path.read_bytes()
    tensors = {name: values.clone() for name, values in sound.tensors.items()}

    def damage(random: Random) -> bytes:
        header = mutate_json(dict(sound.header), random)
        if not isinstance(header, dict) or random.random() < 0.1:
            return mutate_bytes(data, random)
        header.pop("digest", None)
        kept = {name: tensors[name] for name in tensors if random.random() < 0.99}
        if random.random() < 0.2:
            name = random.choice(sorted(tensors))
            kept[name] = random.choice((tensors[name][:0], tensors[name].half(), torch.ones(3)))
        try:
            return encode_tensors(key, header, kept)
        except (ValueError, RecursionError):  # what JSON cannot hold
            return mutate_bytes(data, random)

    return damage


def forged_inversion(folder: Path) -> Reader:
    """A saved inversion with a damaged header and a digest that is right."""
    path = folder / "x.safetensors"
    _inversion().save(path)
    return Reader(path, _forged(path, KEY), lambda: Inversion.load(path), (InversionFileError,))


def state(folder: Path) -> Reader:
    """A state inside a timestep, likewise."""
    path = folder / "x.state"
    request = {"prompt": "a cat"}
    two, embedding = torch.ones(1, 4, 2, 2), torch.ones(1, 3, 4)
    at = Timestep(
        embedding, AdamState.fresh(embedding), torch.ones(1, dtype=torch.bool), torch.ones(1, 2), 1
    )
    done = NullTextState((embedding,), (two, two + 1), (torch.ones(1, 2),), at)
    kept = StateFile(path)
    with contextlib.suppress(KeyboardInterrupt), kept.running(request):
        kept.keep(InversionState((two, two + 1, two + 2), done))
        raise KeyboardInterrupt

    def read() -> None:
        with StateFile(path).running(request):
            pass

    return Reader(path, _forged(path, "state"), read, (StateFileError,))


def published(folder: Path) -> Reader:
    """Tensors that other programs keep."""
    path = folder / "x.safetensors"
    save_file({"x_t": torch.ones(1, 4, 2, 2), "uncond_embeddings": torch.ones(2, 1, 3, 4)}, path)
    data = path.read_bytes()
    entries, body = _split(data)

    def damage(random: Random) -> bytes:
        if random.random() < 0.5:
            return mutate_bytes(data, random)
        return _joined(mutate_json(entries, random), body)

    return Reader(path, damage, lambda: read_published(path), (InversionFileError,))


def picture(folder: Path) -> Reader:
    """Pictures of every format that is read, with EXIF and other metadata."""
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (24, 32, 4), generator=g, dtype=torch.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    sound: list[bytes] = []
    for name, mode in (
        ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "I;16"), ("JPEG", "RGB"), ("JPEG", "CMYK"),
        ("WEBP", "RGB"), ("TIFF", "RGB"), ("TIFF", "F"), ("GIF", "P"), ("BMP", "RGB"), ("PPM", "L"),
    ):  # fmt: skip
        image = Image.frombytes("RGBA", (32, 24), bytes(pixels.flatten().tolist()))
        image = image.convert("L").convert("I;16") if mode == "I;16" else _converted(image, mode)
        buffer = io.BytesIO()
        with_exif = {"exif": exif} if name in ("PNG", "JPEG", "WEBP", "TIFF") else {}
        image.save(buffer, name, **with_exif)
        sound.append(buffer.getvalue())
    path = folder / "x.png"

    def read() -> None:
        opened = open_image(path)
        fit_image(opened, Place.create(opened.size, (16, 16), "crop"))

    return Reader(
        path, lambda random: mutate_bytes(random.choice(sound), random), read, (ValueError,)
    )


def _converted(image: Image.Image, mode: str) -> Image.Image:
    return image.convert("L").convert(mode) if mode == "F" else image.convert("RGB").convert(mode)


READERS: dict[str, Callable[[Path], Reader]] = {
    "checkpoint": checkpoint,
    **{name: _description(name) for name in DESCRIPTIONS},
    "index of shards": index,
    "inversion": inversion,
    "inversion, forged": forged_inversion,
    "state": state,
    "x_t and uncond_embeddings": published,
    "picture": picture,
}
