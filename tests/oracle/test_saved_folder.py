"""A whole model that diffusers and transformers saved, which predicts v, against theirs."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

import nti
from nti.networks.tokenizer import Tokenizer
from nti.sampling.schedule import ddim_step
from oracle_unet import theirs_unet
from tiny import SD_LIKE
from tolerances import assert_close


def their_unet(linear: bool) -> UNet2DConditionModel:
    plain = theirs_unet(SD_LIKE)
    if not linear:
        return plain
    config = dict(plain.config) | {"use_linear_projection": True}
    return UNet2DConditionModel.from_config(config)


def their_autoencoder() -> AutoencoderKL:
    vae = SD_LIKE.vae
    return AutoencoderKL(
        block_out_channels=vae.level_channels,
        layers_per_block=vae.res_blocks,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        norm_num_groups=vae.norm_groups,
        scaling_factor=0.13,
    )


def their_text_encoder() -> CLIPTextModelWithProjection:
    text = SD_LIKE.text
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=text.vocab_size,
            hidden_size=text.width,
            intermediate_size=4 * text.width,
            num_hidden_layers=text.layers,
            num_attention_heads=text.heads,
            projection_dim=text.width,
            hidden_act="quick_gelu",
        )
    )


@pytest.mark.parametrize("linear", [False, True], ids=["convolutions", "linear-projections"])
@pytest.mark.parametrize("shards", [False, True], ids=["one-file", "shards"])
def test_a_saved_folder_samples_as_theirs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, linear: bool, shards: bool
) -> None:
    monkeypatch.setattr("nti.model.SD_V1", SD_LIKE)
    torch.manual_seed(0)
    unet, vae, text = their_unet(linear), their_autoencoder(), their_text_encoder()
    scheduler = DDIMScheduler(
        beta_start=0.0001, beta_end=0.02, beta_schedule="linear", num_train_timesteps=500,
        prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    size = "1MB" if shards else "10GB"
    unet.save_pretrained(tmp_path / "unet", max_shard_size=size)
    vae.save_pretrained(tmp_path / "vae", max_shard_size=size)
    text.save_pretrained(tmp_path / "text_encoder", max_shard_size=size)
    scheduler.save_pretrained(tmp_path / "scheduler")
    assert any(tmp_path.rglob("*.index.json")) == shards
    model = nti.load_model(tmp_path, device="cpu", backend="reference", execution="eager")

    tokens = Tokenizer()(["a cat", "a dog"])
    g = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 64, 64, generator=g) * 2 - 1
    latent = torch.randn(2, 4, 8, 8, generator=g)
    scheduler.set_timesteps(5)
    schedule = model.schedule(5)
    assert schedule.timesteps == tuple(scheduler.timesteps.tolist())
    with torch.no_grad():
        context = text.text_model(tokens).last_hidden_state
        assert_close(model.encode_text(["a cat", "a dog"]), context)
        assert_close(model.encode_image(image), vae.encode(image).latent_dist.mean * 0.13)
        expected = latent
        for i, t in enumerate(scheduler.timesteps):
            eps = model.steps.noise(latent, t, context)
            latent = ddim_step(latent, eps, schedule.coefficients(i))
            output = unet(expected, t, context).sample
            expected = scheduler.step(output, t, expected).prev_sample
    assert_close(latent, expected)


def test_half_precision_shards_are_spelled_as_diffusers_spells_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("nti.model.SD_V1", SD_LIKE)
    for network, name in (
        (their_unet(False), "unet"),
        (their_autoencoder(), "vae"),
        (their_text_encoder(), "text_encoder"),
    ):
        network.half().save_pretrained(tmp_path / name, variant="fp16", max_shard_size="1MB")
    assert json.loads((tmp_path / "text_encoder" / "config.json").read_text())["hidden_act"]
    assert any("fp16" in path.name for path in tmp_path.rglob("*.index*.json"))
    nti.load_model(tmp_path, device="cpu")
