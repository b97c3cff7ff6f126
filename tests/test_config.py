"""A configuration that a stranger wrote is read whole or refused by the name of its field."""

import copy
import json
import time

import pytest

from nti.config import SD_V1, ModelConfig
from nti.model import embedded_checkpoint, locate
from tiny import SD_LIKE, TINY

FIELDS = json.loads(SD_V1.to_json())


def with_fields(**values: object) -> str:
    """SD v1's JSON with fields set; `unet__heads` is a field of a part."""
    fields = copy.deepcopy(FIELDS)
    for name, value in values.items():
        part, _, field = name.rpartition("__")
        (fields[part] if part else fields)[field] = value
    return json.dumps(fields)


@pytest.mark.parametrize("config", [SD_V1, TINY, SD_LIKE], ids=lambda config: config.name)
def test_a_configuration_comes_back(config: ModelConfig) -> None:
    assert ModelConfig.from_json(config.to_json()) == config


def test_the_embedded_configuration_is_read() -> None:
    _, config = locate(embedded_checkpoint())
    assert config.unet.channel_multipliers == (1, 2, 2)
    assert config.schedule.prediction == "epsilon"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"unet__channels": "320"}, "unet.channels: expected `int`, got `str`"),
        ({"unet__channels": None}, "unet.channels: expected `int`, got `null`"),
        ({"unet__channels": 0}, "unet.channels: expected `int` >= 1"),
        ({"unet__channels": 10**30}, "unet.channels: expected `int` <= 8192"),
        ({"unet__channels": 321}, "channels: got 321, expected an even number"),
        ({"unet__res_blocks": 1_000_000}, "unet.res_blocks: expected `int` <= 64"),
        ({"unet__channel_multipliers": []}, "unet.channel_multipliers: expected `array` of length"),
        ({"unet__channel_multipliers": 4}, "unet.channel_multipliers: expected `array`, got `int`"),
        ({"unet__attention_levels": [4]}, r"attention_levels: got \(4,\), expected levels up to 3"),
        ({"unet__attention_levels": [-1]}, r"unet.attention_levels\[0\]: expected `int` >= 0"),
        ({"unet__self_injection_level": 5}, "self_injection_level: got 5, expected at most 3"),
        ({"unet__word_map_level": 3}, r"word_map_level: got 3, expected one of \(0, 1, 2\)"),
        ({"unet__heads": 7}, "unet: heads: got 7, expected a divisor of 320"),
        ({"unet__heads": 0}, "unet.heads: expected `int` >= 1"),
        ({"unet__norm_groups": 33}, "unet: norm_groups: got 33, expected a divisor of 320"),
        ({"unet__latent_channels": 8}, "unet.latent_channels: got 8, expected the VAE's, 4"),
        ({"unet__context_dim": 1024}, "unet.context_dim: got 1024, expected text.width.* 768"),
        ({"vae__norm_groups": 48}, "vae: norm_groups: got 48, expected a divisor of 128"),
        ({"vae__image_channels": 1}, "image_channels: got 1, expected 3"),
        ({"vae__scale": 0}, "vae.scale: expected `float` > 0"),
        ({"text__heads": 11}, "text: heads: got 11, expected a divisor of 768"),
        ({"text__layers": 1_000_000}, "text.layers: expected `int` <= 64"),
        ({"text__vocab_size": 100}, "text.vocab_size: expected `int` >= 49408"),
        ({"text__context_length": 2}, "text.context_length: expected `int` >= 3"),
        ({"text__context_length": 10**6}, "text.context_length: expected `int` <= 1024"),
        ({"schedule__train_steps": 2**31 - 1}, "schedule.train_steps: expected `int` <= 10000"),
        ({"schedule__beta_start": 0}, "schedule.beta_start: expected `float` > 0"),
        ({"schedule__beta_start": 0.5}, "beta_start: got 0.5, expected at most beta_end.* 0.012"),
        ({"schedule__beta_end": 1}, "schedule.beta_end: expected `float` < 1"),
        ({"schedule__beta_end": 0.9}, "beta_end: got 0.9 for 1000 steps"),
        ({"schedule__beta_schedule": "cosine"}, "schedule.beta_schedule: invalid enum value"),
        ({"schedule__prediction": "sample"}, "schedule.prediction: invalid enum value 'sample'"),
        ({"guidance_scale": "7"}, "guidance_scale: expected `float`, got `str`"),
        ({"guidance_scale": float("nan")}, "no JSON"),
        ({"image_size": 0}, "image_size: expected `int` >= 1"),
        ({"image_size": 500}, "image_size: got 500, expected a multiple of 64"),
        ({"name": 3}, "name: expected `str`, got `int`"),
        ({"name": "a" * 65}, "name: expected `str` of length <= 64"),
        ({"name": "\x1b[2J"}, r"name: got '\\x1b\[2J', expected printable characters"),
        ({"vocabulary": "cat"}, "vocabulary: expected `array | null`, got `str`"),
        ({"vocabulary": ["cat\n"]}, r"vocabulary: got 'cat\\n', expected printable"),
        ({"vocabulary": ["a"] * 10_001}, "vocabulary: expected `array` of length <= 10000"),
        ({"unet": []}, "unet: expected `object`, got `array`"),
        ({"extra": 1}, "got unknown fields 'extra', expected none"),
        ({"unet__depth": 1, "vae__level_channels": 1}, "unknown fields 'unet.depth', 'vae.level_"),
        (
            {"unet__channels": 8192, "unet__channel_multipliers": [8, 8, 8, 8]},
            "weights: got .* or more, expected 10,000,000,000",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_field_that_makes_no_model_is_named(values: dict[str, object], message: str) -> None:
    began = time.monotonic()
    with pytest.raises(ValueError, match=f"x.safetensors: .*{message}") as error:
        ModelConfig.from_json(with_fields(**values), "x.safetensors")
    assert "\n" not in str(error.value) and time.monotonic() - began < 1


@pytest.mark.parametrize("name", ["unet", "schedule", "name"])
def test_a_missing_field_is_named(name: str) -> None:
    fields = {key: value for key, value in FIELDS.items() if key != name}
    with pytest.raises(ValueError, match=f"missing required field `{name}`"):
        ModelConfig.from_json(json.dumps(fields))


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{", "[" * 10**6, '{"unet": ' * 10**5, '"\ud800"'],
    ids=["empty", "list", "null", "cut", "deep", "deep-object", "surrogate"],
)  # fmt: skip
def test_text_that_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="model configuration: "):
        ModelConfig.from_json(text)
