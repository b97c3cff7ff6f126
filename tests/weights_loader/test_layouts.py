"""Every layout in which SD v1 is found leads to the same model; everything else is named."""

from pathlib import Path

import pytest
import torch
from nti.weights_loader import CheckpointError
from safetensors.torch import save_file

import nti
from checkpoints import NETWORKS, assert_same, directory, single_file, spelled
from nti.config import SD_V1
from nti.model import StableDiffusion, layouts, parameter_shapes, skeletons

pytestmark = pytest.mark.usefixtures("sd_v1_is_small")


@pytest.mark.parametrize("network", NETWORKS)
def test_every_table_names_every_parameter_of_sd_v1_once(network: str) -> None:
    names = set(parameter_shapes(skeletons(SD_V1)[network]))
    for layout in layouts(SD_V1)[network]:
        targets = [target for _, target in layout.rows]
        assert set(targets) == names and len(targets) == len(names)
        assert len(set(layout.source_keys())) == len(layout.source_keys())


@pytest.mark.parametrize("text_layout", [0, 1], ids=["text_model", "without-text_model"])
def test_one_file_loads(small: StableDiffusion, tmp_path: Path, text_layout: int) -> None:
    path = single_file(small, tmp_path / "x.safetensors", text_layout=text_layout)
    assert_same(nti.load_model(path, device="cpu"), small)


@pytest.mark.parametrize("vae_layout", [2, 3], ids=["new-vae", "old-vae"])
@pytest.mark.parametrize("text_layout", [2, 3], ids=["text_model", "without-text_model"])
def test_a_directory_loads(
    small: StableDiffusion, tmp_path: Path, vae_layout: int, text_layout: int
) -> None:
    path = directory(small, tmp_path / "x", vae_layout=vae_layout, text_layout=text_layout)
    assert_same(nti.load_model(path, device="cpu"), small)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_half_precision_files_load(
    small: StableDiffusion, tmp_path: Path, dtype: torch.dtype
) -> None:
    half = nti.load_model(single_file(small, tmp_path / "x.safetensors", dtype=dtype), device="cpu")
    weight = small.unet.conv_in.weight
    assert half.dtype == torch.float32
    assert torch.equal(half.unet.conv_in.weight, weight.to(dtype).float())
    folder = directory(small, tmp_path / "x", variant=".fp16", dtype=dtype)
    assert_same(nti.load_model(folder, device="cpu"), half)


def test_the_full_precision_file_is_taken_where_both_are_there(
    small: StableDiffusion, tmp_path: Path
) -> None:
    path = directory(small, tmp_path / "x")
    half = directory(small, tmp_path / "half", variant=".fp16", dtype=torch.float16)
    for file in half.rglob("*.safetensors"):
        file.rename(path / file.relative_to(half))
    assert_same(nti.load_model(path, device="cpu"), small)


@pytest.mark.parametrize("layout", [0, 1, 2, 3], ids=["whole", "alone", "diffusers", "old-names"])
@pytest.mark.parametrize("over", ["file", "directory"])
def test_another_autoencoder_over_either(
    small: StableDiffusion, tmp_path: Path, layout: int, over: str
) -> None:
    other = {k: 2 * v for k, v in spelled(small, "vae", layout).items()}
    save_file(other, tmp_path / "vae.safetensors")
    base = (
        single_file(small, tmp_path / "x.safetensors")
        if over == "file"
        else directory(small, tmp_path / "x")
    )
    model = nti.load_model(base, vae=tmp_path / "vae.safetensors", device="cpu")
    weight = small.vae.decoder.middle.attention.to_q.weight
    assert torch.equal(model.vae.decoder.middle.attention.to_q.weight, 2 * weight)
    assert torch.equal(model.unet.conv_in.weight, small.unet.conv_in.weight)


def test_the_autoencoder_of_a_directory_over_a_file(small: StableDiffusion, tmp_path: Path) -> None:
    base = single_file(small, tmp_path / "x.safetensors", without="first_stage_model.")
    for vae in (directory(small, tmp_path / "x"), tmp_path / "x" / "vae"):
        assert_same(nti.load_model(base, vae=vae, device="cpu"), small)


@pytest.mark.parametrize("given", ["file", "folder", "directory"])
@pytest.mark.parametrize("left", ["nothing", "empty-folder", "pickle", "cut-short"])
def test_an_autoencoder_that_is_replaced_is_not_looked_for(
    small: StableDiffusion, tmp_path: Path, left: str, given: str
) -> None:
    base, other = directory(small, tmp_path / "x"), directory(small, tmp_path / "other")
    weights = base / "vae" / "diffusion_pytorch_model.safetensors"
    if left == "cut-short":
        weights.write_bytes(weights.read_bytes()[:100])
    else:
        weights.unlink()
    if left == "pickle":
        weights.with_suffix(".bin").write_bytes(b"\x80")
    elif left == "nothing":
        weights.parent.rmdir()
    with pytest.raises(CheckpointError, match="vae"):
        nti.load_model(base, device="cpu")
    vae = {"file": other / "vae" / weights.name, "folder": other / "vae", "directory": other}[given]
    assert_same(nti.load_model(base, vae=vae, device="cpu"), small)


def test_the_other_networks_of_a_directory_are_still_looked_for(
    small: StableDiffusion, tmp_path: Path
) -> None:
    base, other = directory(small, tmp_path / "x"), directory(small, tmp_path / "other")
    (base / "text_encoder" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="text_encoder: got nothing"):
        nti.load_model(base, vae=other, device="cpu")


def test_what_trainers_leave_behind_is_ignored(small: StableDiffusion, tmp_path: Path) -> None:
    text = "cond_stage_model.transformer.text_model."
    extra = {
        "betas": torch.ones(3),
        "sqrt_recipm1_alphas_cumprod": torch.ones(3),
        "model_ema.decay": torch.ones(1),
        "model_ema.diffusion_modeloutput_blocks00weight": torch.ones(2),
        f"{text}embeddings.position_ids": torch.arange(77)[None],
        "first_stage_model.loss.logvar": torch.ones(1),
        "first_stage_model.loss.discriminator.main.0.weight": torch.ones(1),
        "cond_stage_model.logit_scale": torch.ones(1),
        "denoiser.sigmas": torch.ones(1000),
        "global_step": torch.ones(1),
    }
    path = single_file(small, tmp_path / "x.safetensors", extra=extra)
    assert_same(nti.load_model(path, device="cpu"), small)


def test_linear_layers_may_be_stored_as_1x1_convolutions(
    small: StableDiffusion, tmp_path: Path
) -> None:
    key = "first_stage_model.encoder.mid.attn_1.q.weight"
    flat = {key: spelled(small, "vae")[key][:, :, 0, 0].contiguous()}
    path = single_file(small, tmp_path / "x.safetensors", extra=flat)
    assert_same(nti.load_model(path, device="cpu"), small)


def test_a_network_that_is_not_there_is_named(small: StableDiffusion, tmp_path: Path) -> None:
    path = single_file(small, tmp_path / "x.safetensors", without="cond_stage_model.")
    expected = "missing the whole network; expected keys such as cond_stage_model.transformer"
    with pytest.raises(CheckpointError, match=expected):
        nti.load_model(path, device="cpu")


def test_a_value_that_half_precision_cannot_hold_is_named(
    small: StableDiffusion, tmp_path: Path
) -> None:
    key = "model.diffusion_model.out.2.bias"
    large = {key: torch.full((4,), 1e6)}
    path = single_file(small, tmp_path / "x.safetensors", extra=large)
    with pytest.raises(CheckpointError, match=f"{key}: holds values that are too large for"):
        nti.load_model(path, device="cpu", dtype=torch.float16)
    assert nti.load_model(path, device="cpu").unet.conv_out.bias[0] == 1e6


CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"
TO_K = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


@pytest.mark.parametrize(
    ("tensors", "name"),
    [
        ({TO_K: (320, 1024)}, r"got Stable Diffusion 2\.x"),
        ({"cond_stage_model.model.ln_final.weight": (1024,)}, r"got Stable Diffusion 2\.x"),
        ({"down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (320, 1024)},
         r"got Stable Diffusion 2\.x"),
        ({"conditioner.embedders.0.transformer.x": (1,)}, "got Stable Diffusion XL"),
        ({"add_embedding.linear_1.weight": (1,)}, "got Stable Diffusion XL"),
        ({CONV_IN: (320, 9, 3, 3), TO_K: (320, 1024)}, r"got Stable Diffusion 2\.x"),
        ({CONV_IN: (320, 8, 3, 3)}, "got an InstructPix2Pix.*8 input channels instead of 4"),
        ({"conv_in.weight": (320, 5, 3, 3)}, "got a depth-conditioned UNet"),
        ({"lora_unet_down_blocks_0.lora_up.weight": (1,)}, "got a LoRA"),
        ({"unet.down_blocks.0.attn1.to_q.lora_A.weight": (1,)}, "got a LoRA"),
        ({"control_model.input_hint_block.0.weight": (1,)}, "got a ControlNet"),
        ({"emb_params": (1, 768)}, "got a textual-inversion embedding"),
        ({"model.diffusion_model.joint_blocks.0.x": (1,)}, "got a diffusion transformer"),
        ({"ztsnr": (1,)}, "got a model of zero terminal signal-to-noise"),
        ({"uncond": (1,), "pivot": (1,), "latents": (1,)}, "got a saved inversion"),
    ],
)  # fmt: skip
def test_other_files_are_recognised_by_name(
    tmp_path: Path, tensors: dict[str, tuple[int, ...]], name: str
) -> None:
    path = tmp_path / "x.safetensors"
    save_file({key: torch.zeros(shape) for key, shape in tensors.items()}, path)
    with pytest.raises(CheckpointError, match=f"{name}.*expected Stable Diffusion v1"):
        nti.load_model(path, device="cpu")


@pytest.mark.parametrize("suffix", [".ckpt", ".pt"])
def test_a_pickle_is_never_opened_and_the_message_says_how_to_convert(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"sd{suffix}"
    torch.save({"state_dict": {}}, path)
    with pytest.raises(CheckpointError, match="never unpickled.*weights_only=True.*save_file"):
        nti.load_model(path, device="cpu")


def test_a_directory_of_pickles_or_of_nothing_says_so(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    with pytest.raises(CheckpointError, match="unet: got nothing, expected one of diffusion_py"):
        nti.load_model(tmp_path, device="cpu")
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(CheckpointError, match="never unpickled"):
        nti.load_model(tmp_path, device="cpu")


def test_a_directory_of_sdxl_is_refused(small: StableDiffusion, tmp_path: Path) -> None:
    path = directory(small, tmp_path / "x")
    (path / "text_encoder_2").mkdir()
    with pytest.raises(CheckpointError, match="got Stable Diffusion XL"):
        nti.load_model(path, device="cpu")


def test_a_file_cut_short_says_so(small: StableDiffusion, tmp_path: Path) -> None:
    path = single_file(small, tmp_path / "x.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a safetensors file.*cut short"):
        nti.load_model(path, device="cpu")


def test_weights_are_no_view_of_the_file(small: StableDiffusion, tmp_path: Path) -> None:
    path = single_file(small, tmp_path / "x.safetensors")
    model = nti.load_model(path, device="cpu")
    path.write_bytes(bytes(path.stat().st_size))
    assert_same(model, small)
