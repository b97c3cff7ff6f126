from pathlib import Path

import pytest
import torch
from nti.kernels.backend import BACKENDS
from nti.weights_loader import CheckpointError, read_metadata, read_networks
from safetensors.torch import load_file, save_file

import nti
from nti.model import (
    CONFIG_KEY,
    embedded_checkpoint,
    layouts,
    locate,
    parameter_shapes,
    skeletons,
)

WEIGHT = "model.diffusion_model.out.2.weight"


def changed(path: Path, changes: dict[str, torch.Tensor | None]) -> Path:
    """The embedded checkpoint with keys added, replaced or (None) removed."""
    tensors = load_file(embedded_checkpoint())
    for key, value in changes.items():
        if value is None:
            del tensors[key]
        else:
            tensors[key] = value
    save_file(tensors, path, metadata=read_metadata(embedded_checkpoint()))
    return path


def test_every_parameter_is_filled_from_the_file(embedded: nti.StableDiffusion) -> None:
    file = load_file(embedded_checkpoint())
    for network in (embedded.unet, embedded.vae, embedded.text):
        assert not any(p.is_meta for p in [*network.parameters(), *network.buffers()])
    total = sum(
        p.numel() for n in (embedded.unet, embedded.vae, embedded.text) for p in n.parameters()
    )
    assert total == sum(value.numel() for value in file.values())
    assert torch.equal(embedded.unet.conv_out.weight, file[WEIGHT].float())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({WEIGHT: None}, f"missing {WEIGHT}"),
        ({"model.diffusion_model.extra": torch.ones(1)}, "unknown key model.diffusion_model.extra"),
        ({WEIGHT: torch.ones(4, 64, 1, 1)}, r"got shape \(4, 64, 1, 1\), expected \(4, 64, 3, 3\)"),
        ({WEIGHT: torch.full((4, 64, 3, 3), torch.nan)}, "not finite"),
        (
            {WEIGHT: torch.ones(4, 64, 3, 3, dtype=torch.int32)},
            "got I32, expected one of F64, F32, F16, BF16",
        ),
    ],
    ids=["missing", "unknown", "misshapen", "not-finite", "integer"],
)
def test_a_wrong_key_is_named(
    tmp_path: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        nti.load_model(changed(tmp_path / "x.safetensors", changes), device="cpu")


def test_up_to_ten_offenders_are_listed(tmp_path: Path) -> None:
    extra: dict[str, torch.Tensor | None] = {
        f"model.diffusion_model.extra{i}": torch.ones(1) for i in range(12)
    }
    with pytest.raises(CheckpointError) as error:
        nti.load_model(changed(tmp_path / "x.safetensors", extra), device="cpu")
    assert str(error.value).count("unknown key") == 10
    assert "12 problems" in str(error.value) and "and 2 more" in str(error.value)


def test_schedule_buffers_ema_and_position_ids_are_ignored(tmp_path: Path) -> None:
    ignored: dict[str, torch.Tensor | None] = {
        "betas": torch.ones(3),
        "model_ema.decay": torch.ones(1),
        "model_ema.diffusion_modeloutput": torch.ones(1),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.ones(1, 77),
    }
    nti.load_model(changed(tmp_path / "x.safetensors", ignored), device="cpu")


def test_another_autoencoder_takes_the_place_of_the_checkpoints(tmp_path: Path) -> None:
    prefix = "first_stage_model."
    tensors = {
        key.removeprefix(prefix): value * 2
        for key, value in load_file(embedded_checkpoint()).items()
        if key.startswith(prefix)
    }
    save_file(tensors, tmp_path / "vae.safetensors")
    plain = nti.load_model(device="cpu")
    other = nti.load_model(vae=tmp_path / "vae.safetensors", device="cpu")
    assert torch.equal(other.vae.decoder.conv_in.weight, 2 * plain.vae.decoder.conv_in.weight)
    assert torch.equal(other.unet.conv_in.weight, plain.unet.conv_in.weight)


def test_a_missing_file_and_a_file_of_another_kind_say_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        nti.load_model(tmp_path / "none.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"hello, this is no checkpoint")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        nti.load_model(tmp_path / "x.safetensors")


def test_convolutions_are_read_into_the_layout_that_they_run_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Laid out afterwards, a second copy of each stays in memory until the last is done."""
    pointers: set[int] = set()

    def spy(*arguments: object, **keywords: object) -> dict[str, dict[str, torch.Tensor]]:
        networks = read_networks(*arguments, **keywords)
        pointers.update(value.data_ptr() for value in networks["unet"].values())
        return networks

    monkeypatch.setattr(nti.model, "read_networks", spy)
    unet = nti.load_model(device="cpu").unet
    assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert {parameter.data_ptr() for parameter in unet.parameters()} == pointers


def read(path: Path, dtypes: dict[str, torch.dtype]) -> dict[str, dict[str, torch.Tensor]]:
    """Read the networks of a checkpoint of the embedded model, each in its dtype."""
    files, config = locate(path)
    shapes = {name: parameter_shapes(network) for name, network in skeletons(config).items()}
    cpu = torch.device("cpu")
    return read_networks(files, layouts(config), shapes, dtypes=dtypes, device=cpu)


def test_each_network_is_read_in_its_own_dtype() -> None:
    dtypes = {"unet": torch.float16, "vae": torch.float32, "text": torch.bfloat16}
    networks = read(embedded_checkpoint(), dtypes)
    held = {name: {value.dtype for value in state.values()} for name, state in networks.items()}
    assert held == {name: {dtype} for name, dtype in dtypes.items()}
    prefix = "first_stage_model."
    weight = load_file(embedded_checkpoint())[f"{prefix}decoder.conv_in.weight"]
    assert torch.equal(networks["vae"]["decoder.conv_in.weight"], weight.float())


def test_a_value_must_fit_the_dtype_of_its_own_network(tmp_path: Path) -> None:
    key = "first_stage_model.decoder.conv_in.bias"
    like = load_file(embedded_checkpoint())[key]
    path = changed(tmp_path / "x.safetensors", {key: torch.full(like.shape, 1e6)})
    dtypes = dict.fromkeys(("unet", "vae", "text"), torch.float16)
    networks = read(path, dtypes | {"vae": torch.float32})
    assert (networks["vae"]["decoder.conv_in.bias"] == 1e6).all()
    with pytest.raises(CheckpointError, match=f"{key}: .* too large for torch.float16"):
        read(path, dtypes | {"unet": torch.float32})


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="backend: got 'xformers'"):
        nti.load_model(backend="xformers")
    with pytest.raises(ValueError, match="device: got 'cpu'"):
        nti.load_model(device="cpu", backend="triton")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_resolved_backend_computes_the_unets_attention(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nti.model, "choose_backend", lambda *_: backend)
    modules = [m for m in nti.load_model(device="cpu").unet.modules() if hasattr(m, "backend")]
    assert modules
    assert {m.backend for m in modules} == {backend}


def test_the_embedded_checkpoint_is_small_and_states_its_provenance() -> None:
    assert embedded_checkpoint().stat().st_size <= 24_000_000
    metadata = read_metadata(embedded_checkpoint())
    assert CONFIG_KEY in metadata and "seed" in metadata["card"]


def test_token_rows_that_were_never_trained_are_zero(embedded: nti.StableDiffusion) -> None:
    table = embedded.text.tower.token_embedding.weight
    known = embedded.tokenizer(["a striped red circle on snow"]).unique()
    assert table[known].abs().sum(dim=1).min() > 0
    unknown = embedded.tokenizer(["photograph"])[0, 1]
    assert table[unknown].abs().max() == 0


def test_a_prompt_word_outside_the_world_is_warned_of(embedded: nti.StableDiffusion) -> None:
    with pytest.warns(UserWarning, match="never trained on 'photograph'"):
        embedded.encode_text(["a red photograph"])
