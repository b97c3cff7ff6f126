"""A model is known again by its weights, whatever dtype or layout they come in."""

import dataclasses

import pytest
import torch

import nti
from nti import Inversion, StableDiffusion
from nti.fingerprint import Fingerprint
from tiny import TINY, make_model


def rounded(model: StableDiffusion, *dtypes: torch.dtype) -> Fingerprint:
    """The fingerprint of a model whose weights went through some dtypes and are float32 again."""
    copy = make_model()
    with torch.no_grad():
        for network in (copy.unet, copy.text, copy.vae):
            for weight in network.parameters():
                for dtype in dtypes:
                    weight.copy_(weight.to(dtype))
    return copy.fingerprint


HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    "dtypes",
    [(SINGLE,), (HALF,), (BRAIN,), (HALF, BRAIN), (BRAIN, HALF)],
    ids=lambda dtypes: "-".join(str(d).removeprefix("torch.") for d in dtypes),
)
def test_rounding_is_not_another_model(model: StableDiffusion, dtypes: tuple[torch.dtype]) -> None:
    found = rounded(model, *dtypes)
    for other in (rounded(model), rounded(model, SINGLE), rounded(model, HALF)):
        assert found.differing(other) == other.differing(found) == []


def test_another_layout_is_not_another_model(model: StableDiffusion) -> None:
    copy = make_model()
    copy.unet.to(memory_format=torch.channels_last)
    assert copy.fingerprint.differing(model.fingerprint) == []


@pytest.mark.parametrize("network", ["unet", "text", "vae"])
def test_a_fine_tune_is_another_model(model: StableDiffusion, network: str) -> None:
    """One weight of a network has moved by half a percent."""
    copy = make_model()
    weight = max(getattr(copy, network).parameters(), key=lambda w: w.numel())
    with torch.no_grad():
        weight.mul_(1.005)
    assert copy.fingerprint.differing(model.fingerprint) == [network]
    narrow = dataclasses.replace(TINY, unet=dataclasses.replace(TINY.unet, channels=32))
    assert "unet" in make_model(narrow).fingerprint.differing(model.fingerprint)


@pytest.mark.parametrize(
    ("part", "change", "network"),
    [
        ("schedule", {"beta_start": 0.0005}, "unet"),
        ("schedule", {"prediction": "v_prediction"}, "unet"),
        ("unet", {"heads": 4}, "unet"),
        ("text", {"heads": 4}, "text"),
        ("vae", {"scale": 0.6}, "vae"),
    ],
    ids=["betas", "v", "heads", "text-heads", "scale"],
)
def test_the_same_weights_with_other_numbers_are_another_model(
    model: StableDiffusion,
    inversion: Inversion,
    part: str,
    change: dict[str, object],
    network: str,
) -> None:
    changed = dataclasses.replace(getattr(TINY, part), **change)
    other = make_model(dataclasses.replace(TINY, **{part: changed}))
    assert other.fingerprint.differing(model.fingerprint) == [network]
    if network == "vae":
        with pytest.warns(UserWarning, match="another autoencoder"):
            nti.reconstruct(other, inversion)
    else:
        with pytest.raises(ValueError, match="or numbers such as the schedule"):
            nti.reconstruct(other, inversion)


def test_an_inversion_refuses_other_weights_and_warns_of_another_autoencoder(
    inversion: Inversion,
) -> None:
    other = make_model()
    with torch.no_grad():
        other.vae.decoder.conv_in.weight.mul_(1.1)
    with pytest.warns(UserWarning, match="another autoencoder"):
        nti.reconstruct(other, inversion)
    with torch.no_grad():
        other.unet.conv_in.weight.mul_(1.1)
    del other.fingerprint
    for use in (
        lambda: nti.reconstruct(other, inversion),
        lambda: nti.edit(other, inversion, "a tiger sitting next to a mirror"),
        lambda: nti.average_attention(other, inversion),
    ):
        with pytest.raises(ValueError, match=r"made with another UNet and autoencoder"):
            use()
    nti.reconstruct(other, dataclasses.replace(inversion, weights=None))
