"""What is written beside the weights is honoured or refused by name, never read half."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nti.weights_loader import CheckpointError
from safetensors.torch import save_file

import nti
from checkpoints import assert_same, directory, single_file
from nti.config import ScheduleConfig
from nti.inspection import describe_file
from nti.model import CONFIG_KEY, StableDiffusion, locate
from nti.sampling.schedule import alpha_bars
from tiny import SD_LIKE, V_TINY, make_model

pytestmark = pytest.mark.usefixtures("sd_v1_is_small")

VELOCITY = "v_prediction"


@pytest.fixture(scope="module")
def whole(small: StableDiffusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as diffusers writes it, with nothing but weights; not to be changed."""
    return directory(small, tmp_path_factory.mktemp("whole") / "x")


def beside(whole: Path, path: Path, file: str, text: str | bytes) -> Path:
    """The same weights in a directory of their own, and a file that describes them."""
    for weights in whole.rglob("*.safetensors"):
        link = path / weights.relative_to(whole)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(weights)
    (path / file).parent.mkdir(exist_ok=True)
    (path / file).write_bytes(text.encode() if isinstance(text, str) else text)
    return path


SCHEDULER = "scheduler/scheduler_config.json"

PUBLISHED = {
    SCHEDULER: {
        "_class_name": "PNDMScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
        "clip_sample": False,
        "rescale_betas_zero_snr": False,
    },
    "unet/config.json": {
        "act_fn": "silu",
        "attention_head_dim": [2, 2, 2, 2],
        "block_out_channels": [16, 32, 64, 64],
        "cross_attention_dim": 24,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "in_channels": 4,
        "use_linear_projection": True,
        "num_attention_heads": None,
        "time_cond_proj_dim": None,
        "norm_num_groups": 8,
        "only_cross_attention": False,
    },
    "vae/config.json": {"act_fn": "silu", "latent_channels": 4, "shift_factor": None},
    "text_encoder/config.json": {"hidden_act": "quick_gelu", "hidden_size": 24},
}


@pytest.mark.parametrize("file", PUBLISHED)
def test_what_describes_the_model_that_is_built_loads(
    small: StableDiffusion, whole: Path, tmp_path: Path, file: str
) -> None:
    path = beside(whole, tmp_path / "x", file, json.dumps(PUBLISHED[file]))
    model = nti.load_model(path, device="cpu")
    assert_same(model, small)
    assert model.config == SD_LIKE


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("prediction_type", VELOCITY, "prediction"),
        ("beta_schedule", "linear", "beta_schedule"),
        ("beta_start", 0.0001, "beta_start"),
        ("beta_end", 0.02, "beta_end"),
        ("num_train_timesteps", 500, "train_steps"),
    ],
)
def test_the_scheduler_is_honoured(
    whole: Path, tmp_path: Path, name: str, value: Any, field: str
) -> None:
    text = json.dumps(PUBLISHED[SCHEDULER] | {name: value})
    path = beside(whole, tmp_path / "x", SCHEDULER, text)
    model = nti.load_model(path, device="cpu")
    expected = dataclasses.replace(SD_LIKE.schedule, **{field: value})
    assert model.config.schedule == model.unet.schedule == expected


def test_the_autoencoders_scale_is_honoured(
    small: StableDiffusion, whole: Path, tmp_path: Path
) -> None:
    config = "vae/config.json"
    path = beside(whole, tmp_path / "x", config, '{"scaling_factor": 0.13}')
    assert nti.load_model(path, device="cpu").vae.config.scale == 0.13
    # Over a file whose own autoencoder is described otherwise.
    base = single_file(small, tmp_path / "y.safetensors", without="first_stage_model.")
    (tmp_path / "y.yaml").write_text("model:\n  params:\n    scale_factor: 0.5\n")
    for vae in (path, path / "vae", path / "vae" / "diffusion_pytorch_model.safetensors"):
        assert nti.load_model(base, vae=vae, device="cpu").vae.config.scale == 0.13
    other = directory(small, tmp_path / "z") / "vae"
    assert nti.load_model(base, vae=other, device="cpu").vae.config.scale == 0.5


REFUSED = [
    (SCHEDULER, "prediction_type", "sample", "expected 'epsilon' or 'v_prediction'"),
    (SCHEDULER, "prediction_type", [], "expected 'epsilon' or"),
    (SCHEDULER, "prediction_type", 3, "expected 'epsilon' or"),
    (SCHEDULER, "beta_schedule", "squaredcos_cap_v2", "expected 'scaled_linear' or 'linear'"),
    (SCHEDULER, "beta_start", "a", "expected `float`"),
    (SCHEDULER, "beta_start", 0.5, "beta_start: got 0.5, expected at most beta_end"),
    (SCHEDULER, "beta_end", 1, "expected `float` < 1"),
    (SCHEDULER, "beta_end", True, "expected `float`, got `bool`"),
    (SCHEDULER, "num_train_timesteps", 2**31 - 1, "expected `int` <= 10000"),
    (SCHEDULER, "num_train_timesteps", 0.5, "expected `int`"),
    (SCHEDULER, "rescale_betas_zero_snr", True, "got True, expected False"),
    (SCHEDULER, "trained_betas", [0.1], r"got \[0.1\], expected null"),
    ("vae/config.json", "scaling_factor", 0, "expected `float` > 0"),
    ("vae/config.json", "scaling_factor", "nan", "expected `float`"),
    ("vae/config.json", "shift_factor", 0.1, "got 0.1, expected 0"),
    ("vae/config.json", "latents_mean", [0.1], "expected None"),
    ("vae/config.json", "norm_num_groups", 32, "got 32, expected 4"),
    ("vae/config.json", "latent_channels", 16, "got 16, expected 4"),
    ("text_encoder/config.json", "hidden_act", "gelu", "got 'gelu', expected 'quick_gelu'"),
    ("text_encoder/config.json", "num_attention_heads", 4, "got 4, expected 2"),
    ("text_encoder/config.json", "num_hidden_layers", 1, "got 1, expected 2"),
    ("text_encoder/config.json", "text_config", {"hidden_act": "gelu"}, "expected 'quick_gelu'"),
    ("unet/config.json", "in_channels", 9, "got 9, expected 4"),
    ("unet/config.json", "cross_attention_dim", 1024, "got 1024, expected 24"),
    ("unet/config.json", "attention_head_dim", [2, 4, 8, 8], r"got \[2, 4, 8, 8\], expected 2"),
    ("unet/config.json", "attention_head_dim", [], "expected 2"),
    ("unet/config.json", "norm_num_groups", 32, "got 32, expected 8"),
    ("unet/config.json", "act_fn", "gelu", "got 'gelu', expected 'silu'"),
    ("unet/config.json", "time_cond_proj_dim", 256, "got 256, expected None"),
    ("unet/config.json", "resnet_time_scale_shift", "scale_shift", "expected 'default'"),
    ("unet/config.json", "flip_sin_to_cos", False, "got False, expected True"),
]


@pytest.mark.parametrize(
    ("file", "name", "value", "message"),
    REFUSED,
    ids=[f"{Path(file).parent}-{name}-{i}" for i, (file, name, *_) in enumerate(REFUSED)],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    whole: Path, tmp_path: Path, file: str, name: str, value: Any, message: str
) -> None:
    path = beside(whole, tmp_path / "x", file, json.dumps({name: value}))
    field = "hidden_act" if name == "text_config" else name
    with pytest.raises(CheckpointError, match=f"{file}: {field}: .*{message}") as error:
        nti.load_model(path, device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("file", PUBLISHED)
@pytest.mark.parametrize(
    "text", [b"", b"[]", b"null", b"3", b"{", b"\xff\xfe", b'{"a":' * 10**5, b'"\\ud800"'],
    ids=["empty", "list", "null", "number", "cut", "utf-16", "deep", "surrogate"],
)  # fmt: skip
def test_a_file_that_is_no_object_is_named(
    whole: Path, tmp_path: Path, file: str, text: bytes
) -> None:
    path = beside(whole, tmp_path / "x", file, text)
    with pytest.raises(CheckpointError, match=f"{file}: "):
        locate(path)


def test_a_byte_order_mark_is_skipped(whole: Path, tmp_path: Path) -> None:
    text = b'\xef\xbb\xbf{"prediction_type": "v_prediction"}'
    path = beside(whole, tmp_path / "x", SCHEDULER, text)
    assert locate(path)[1].schedule.prediction == VELOCITY


def test_a_description_that_is_too_large_is_refused(whole: Path, tmp_path: Path) -> None:
    path = beside(whole, tmp_path / "x", SCHEDULER, b" " * (2**24 + 1))
    with pytest.raises(CheckpointError, match="got more than 16777216 bytes"):
        locate(path)


YAML = """
model:
  base_learning_rate: 1.0e-04
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    {line}
    # parameterization: "x0"
    first_stage_key: jpg
    cond_stage_key: txt   # timesteps of another kind
"""


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ('parameterization: "v"', {"prediction": VELOCITY}),
        ("parameterization: v  # as trained", {"prediction": VELOCITY}),
        ("'parameterization' : 'v'", {"prediction": VELOCITY}),
        ("parameterization: eps", {}),
        ("linear_start: 1.0e-4", {"beta_start": 0.0001}),
        ("linear_end: 0.0120", {}),
        ("timesteps: 500", {"train_steps": 500}),
        ("beta_schedule: linear", {}),
        ("image_size: 64", {}),
    ],
)
def test_a_yaml_beside_the_file_is_honoured(
    small: StableDiffusion, tmp_path: Path, line: str, fields: dict[str, Any]
) -> None:
    path = single_file(small, tmp_path / "x.safetensors")
    (tmp_path / "x.yaml").write_text(YAML.format(line=line))
    (tmp_path / "y.yaml").write_text("parameterization: x0")
    assert locate(path)[1].schedule == dataclasses.replace(SD_LIKE.schedule, **fields)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("parameterization: x0", "parameterization: got 'x0', expected 'eps' or 'v'"),
        ("{parameterization: v}", "line 6: got '{parameterization: v}', expected"),
        ("parameterization:", "line 6: got 'parameterization:', expected"),
        ("parameterization: &p v", "line 6: got .*, expected"),
        ("parameterization: v\n    parameterization: eps", "says 'epsilon', but .* says 'v_pre"),
        ("linear_end: a", "linear_end: got 'a', expected `float`"),
        ("linear_end: nan", "linear_end: got 'nan', expected"),
        ("beta_schedule: cosine", "beta_schedule: got 'cosine', expected 'linear'"),
    ],
)
def test_a_yaml_that_cannot_be_honoured_is_refused(
    small: StableDiffusion, tmp_path: Path, line: str, message: str
) -> None:
    path = single_file(small, tmp_path / "x.safetensors")
    (tmp_path / "x.yaml").write_text(YAML.replace("{line}", line))
    with pytest.raises(CheckpointError, match=f"x.yaml: .*{message}"):
        nti.load_model(path, device="cpu")


@pytest.mark.parametrize(
    ("metadata", "keys", "prediction"),
    [
        ({"modelspec.prediction_type": "v"}, (), VELOCITY),
        ({"modelspec.prediction_type": "epsilon"}, (), "epsilon"),
        ({"ss_v_parameterization": "True"}, (), VELOCITY),
        ({"ss_v_parameterization": "False", "ss_zero_terminal_snr": "False"}, (), "epsilon"),
        (
            {"modelspec.prediction_type": "v", "ss_v_parameterization": "True"},
            ("v_pred",),
            VELOCITY,
        ),
        ({}, ("v_pred",), VELOCITY),
        ({"modelspec.architecture": "stable-diffusion-v1"}, (), "epsilon"),
    ],
)
def test_the_header_is_honoured(
    small: StableDiffusion,
    tmp_path: Path,
    metadata: dict[str, str],
    keys: tuple[str, ...],
    prediction: str,
) -> None:
    extra = {key: torch.tensor([]) for key in keys}
    path = single_file(small, tmp_path / "x.safetensors", extra=extra, metadata=metadata)
    model = nti.load_model(path, device="cpu")
    assert model.config.schedule.prediction == prediction
    assert ("predicts v" in describe_file(path)) == (prediction == VELOCITY)


@pytest.mark.parametrize(
    ("metadata", "keys", "message"),
    [
        ({"modelspec.prediction_type": "x0"}, (), "modelspec.prediction_type: got 'x0', expected"),
        ({"ss_zero_terminal_snr": "True"}, (), "ss_zero_terminal_snr: got 'True', expected"),
        ({"modelspec.prediction_type": "epsilon"}, ("v_pred",), "key 'v_pred' says 'v_prediction'"),
        ({}, ("v_pred", "ztsnr"), "zero terminal signal-to-noise"),
    ],
)
def test_a_header_that_cannot_be_honoured_is_refused(
    small: StableDiffusion,
    tmp_path: Path,
    metadata: dict[str, str],
    keys: tuple[str, ...],
    message: str,
) -> None:
    extra = {key: torch.tensor([]) for key in keys}
    path = single_file(small, tmp_path / "x.safetensors", extra=extra, metadata=metadata)
    with pytest.raises(CheckpointError, match=f"x.safetensors: .*{message}"):
        nti.load_model(path, device="cpu")


def test_a_configuration_of_our_own_states_what_is_predicted(tmp_path: Path) -> None:
    model = make_model(V_TINY, torch.float32)
    metadata = {CONFIG_KEY: V_TINY.to_json()}
    path = single_file(model, tmp_path / "x.safetensors", metadata=metadata)
    loaded = nti.load_model(path, device="cpu")
    assert loaded.config == V_TINY
    latent, context = torch.randn(1, 4, 8, 8), model.encode_text(["a cat"])
    t = torch.tensor(481)
    found = loaded.with_execution("eager").steps.noise(latent, t, context)
    assert torch.equal(found, model.steps.noise(latent, t, context))


def test_a_configuration_of_our_own_that_is_wrong_is_named(tmp_path: Path) -> None:
    model = make_model(V_TINY, torch.float32)
    text = V_TINY.to_json().replace('"heads": 2', '"heads": 3', 1)
    path = single_file(model, tmp_path / "x.safetensors", metadata={CONFIG_KEY: text})
    message = f"x.safetensors: metadata {CONFIG_KEY}: unet: heads: got 3, expected a divisor"
    for load in (nti.load_model, describe_file):
        with pytest.raises(CheckpointError, match=message):
            load(path)


def test_stable_diffusion_2_is_refused_as_such(whole: Path, tmp_path: Path) -> None:
    text = json.dumps({"prediction_type": VELOCITY})
    path = beside(whole, tmp_path / "x", SCHEDULER, text)
    (path / "unet" / "config.json").write_text('{"cross_attention_dim": 1024}')
    key = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    weights = path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    save_file({key: torch.zeros(320, 1024)}, weights)
    with pytest.raises(CheckpointError, match=r"got Stable Diffusion 2\.x"):
        nti.load_model(path, device="cpu")


def rescaled(table: torch.Tensor) -> torch.Tensor:
    """To zero terminal signal (Lin et al. 2023, arXiv 2305.08891, Algorithm 1)."""
    root = table.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()


PUBLISHED_TABLE = alpha_bars(ScheduleConfig(1000, 0.00085, 0.012))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_the_published_table_of_alpha_bar_is_no_news(
    small: StableDiffusion, tmp_path: Path, dtype: torch.dtype
) -> None:
    path = tmp_path / "x.safetensors"
    single_file(small, path, extra={"alphas_cumprod": PUBLISHED_TABLE.to(dtype)})
    assert_same(nti.load_model(path, device="cpu"), small)


@pytest.mark.parametrize(
    "table",
    [
        rescaled(PUBLISHED_TABLE),
        alpha_bars(ScheduleConfig(1000, 0.00085, 0.012, "linear")),
        PUBLISHED_TABLE[:500],
        PUBLISHED_TABLE * torch.nan,
        PUBLISHED_TABLE.long(),
    ],
    ids=["zero-snr", "linear", "short", "nan", "integers"],
)
def test_another_table_of_alpha_bar_is_refused(
    small: StableDiffusion, tmp_path: Path, table: torch.Tensor
) -> None:
    path = single_file(small, tmp_path / "x.safetensors", extra={"alphas_cumprod": table})
    with pytest.raises(CheckpointError, match=f"{path}: alphas_cumprod: got another schedule"):
        nti.load_model(path, device="cpu")


def test_a_table_that_is_described_beside_it_is_honoured(
    small: StableDiffusion, tmp_path: Path
) -> None:
    table = alpha_bars(ScheduleConfig(1000, 0.0005, 0.012)).float()
    path = single_file(small, tmp_path / "x.safetensors", extra={"alphas_cumprod": table})
    (tmp_path / "x.yaml").write_text("model:\n  params:\n    linear_start: 0.0005\n")
    assert nti.load_model(path, device="cpu").config.schedule.beta_start == 0.0005
