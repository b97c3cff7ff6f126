"""Pictures from a seed, as inversions."""

from pathlib import Path

import pytest
import torch

import nti
from nti import Inversion, StableDiffusion
from nti.inversion.sampling import sample
from tolerances import assert_close


def test_it_is_guided_sampling_from_the_seeds_noise(model: StableDiffusion) -> None:
    made = nti.generate(model, "a cat", seed=7, steps=5, guidance_scale=3.0, size=(64, 48))
    noise = torch.randn(1, 4, 6, 8, generator=torch.Generator().manual_seed(7)).double()
    null = model.encode_text([""]).expand(5, 1, -1, -1)
    cond = model.encode_text(["a cat"])
    expected = sample(model.steps, noise, cond, null, model.schedule(5), 3.0)
    assert torch.equal(made.latents, expected[:, 0]) and torch.equal(made.pivot, made.latents)
    assert made.method == "generated" and made.losses.shape == (5, 0)


def test_the_seed_decides(model: StableDiffusion) -> None:
    one, again, other = (nti.generate(model, "a cat", seed=s, steps=3) for s in (1, 1, 2))
    assert one == again != other


def test_a_negative_prompt_takes_the_null_embeddings_place(model: StableDiffusion) -> None:
    made = nti.generate(model, "a cat", steps=3, negative_prompt="a dog")
    assert torch.equal(made.uncond, model.encode_text(["a dog"]).expand(3, -1, -1))
    assert made != nti.generate(model, "a cat", steps=3)


def test_it_is_saved_reconstructed_and_edited_like_an_inversion(
    model: StableDiffusion, tmp_path: Path
) -> None:
    nti.generate(model, "a cat next to a mirror", seed=3, steps=5).save(tmp_path / "x")
    made = Inversion.load(tmp_path / "x")
    same = nti.edit(model, made, made.prompt, cross_replace=1.0, self_replace=1.0)
    assert_close(same.latents[:, 0], made.latents)
    assert same.source.tobytes() == nti.reconstruct(model, made).tobytes()
    edited = nti.edit(model, made, "a tiger next to a mirror")
    assert not torch.allclose(edited.latents[-1, 0], made.latents[-1], rtol=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 100}, "size: got 100x100, expected multiples of 16"),
        ({"size": 0}, "size: got 0, expected pixels"),
        ({"size": "native"}, "size: got 'native', expected pixels or"),
        ({"size": (64,)}, r"size: got \(64,\), expected pixels or"),
        ({"steps": 0}, "steps: got 0"),
        ({"guidance_scale": float("nan")}, "guidance_scale: got nan"),
    ],
)
def test_numbers_that_cannot_be_are_refused(
    model: StableDiffusion, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        nti.generate(model, "a cat", **settings)
