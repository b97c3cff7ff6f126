import pytest
import torch

from nti import Inversion, StableDiffusion, diffedit, invert
from nti.editing.diffedit import _scaled
from nti.sampling.step import noise
from tolerances import assert_close

TIGER = "a tiger sitting next to a mirror"
SMALL = "a small cat sitting next to a mirror"


def difference(
    model: StableDiffusion, inversion: Inversion, prompt: str, seed: int
) -> torch.Tensor:
    """|eps(z, P*) - eps(z, P)| of three noises at half of ten steps, timestep 401, as written."""
    g, a, maps = torch.Generator().manual_seed(seed), model.schedule(10).alpha_bar[5], []
    source, target = model.encode_text([inversion.prompt]), model.encode_text([prompt])
    for eps in torch.randn(3, 1, 4, 8, 8, generator=g).double():
        z = a.sqrt() * inversion.pivot[-1:] + (1 - a).sqrt() * eps
        theirs, ours = (noise(model.unet, z, torch.tensor(401), c) for c in (target, source))
        maps.append((theirs - ours).abs())
    return torch.stack(maps).mean(dim=(0, 2))[0]


def test_the_mask_is_where_the_prompts_differ_at_half_the_noise(
    model: StableDiffusion, inversion: Inversion
) -> None:
    prompts = [TIGER, SMALL]
    result = diffedit(model, inversion, prompts, noises=3, seed=4, strength=0.2)
    assert result.masks is not None and result.masks.shape == (2, 2, 8, 8)
    for prompt, mask in zip(prompts, result.masks[0], strict=True):
        x = difference(model, inversion, prompt, seed=4)
        x = x.clamp(max=3 * x.mean())
        expected = (x - x.min()) / (x.max() - x.min()) > 0.5
        assert torch.equal(mask, expected) and 0 < mask.sum() < 64
    assert not torch.equal(result.masks[0, 0], result.masks[0, 1])
    theirs = diffedit(
        model, inversion, prompts, noises=3, seed=4, strength=0.2, mask_rule="diffusers"
    )
    assert theirs.masks is not None
    for prompt, mask in zip(prompts, theirs.masks[0], strict=True):
        x = difference(model, inversion, prompt, seed=4)
        assert torch.equal(mask, x > 1.5 * x.mean())


def test_outliers_are_cut_to_three_times_the_mean_before_scaling() -> None:
    x = torch.ones(1, 10, 10, dtype=torch.float64)
    x[0, 0, 0], x[0, 0, 1] = 101.0, 0.0  # the mean is 1.99
    most = 3 * 1.99
    for rule, expected in (("paper", [1, 0, 1 / most]), ("diffusers", [1, 0, 1 / most])):
        assert_close(_scaled(x, rule)[0, 0, :3], torch.tensor(expected, dtype=torch.float64))
    lifted = x + 5  # only the paper's rule subtracts the smallest
    assert _scaled(lifted, "paper").min() == 0 and _scaled(lifted, "diffusers").min() > 0.2


def test_the_latent_outside_is_the_stored_one_after_every_step(
    model: StableDiffusion, inversion: Inversion
) -> None:
    result = diffedit(model, inversion, [TIGER, SMALL], strength=0.6)
    assert result.masks is not None and result.latents.shape[:2] == (7, 2)
    assert torch.equal(result.latents[0], inversion.latents[4].expand(2, -1, -1, -1))
    for e in range(2):
        mask = result.masks[0, e]
        for latent, stored in zip(result.latents[1:, e], inversion.latents[5:], strict=True):
            assert torch.equal(latent[:, ~mask], stored[:, ~mask])
            assert not torch.equal(latent[:, mask], stored[:, mask])


def test_strength_0_is_the_source(model: StableDiffusion, inversion: Inversion) -> None:
    result = diffedit(model, inversion, TIGER, strength=0, noises=1)
    assert result.images[0].tobytes() == result.source.tobytes()


def test_each_noise_counts_as_a_step(model: StableDiffusion, inversion: Inversion) -> None:
    heard: list[tuple[int, int]] = []
    diffedit(
        model, inversion, TIGER, noises=3, strength=0.5,
        callback=lambda done, total: heard.append((done, total)),
    )  # fmt: skip
    assert heard == [(i + 1, 8) for i in range(8)]


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        ("A cat  sitting next to a mirror", {}, r"prompts\[0\]: got .*differs nowhere from"),
        ([TIGER, "a cat sitting next to a mirror"], {}, r"prompts\[1\]: got .*differs nowhere"),
        (TIGER, {"mask_threshold": 1}, "mask_threshold: got 1.0, above which an edit has no pos"),
        (TIGER, {"noises": 0}, "noises: got 0, expected 1 to 1000"),
        (TIGER, {"mask_rule": "mine"}, "mask_rule: got 'mine', expected one of paper, diffusers"),
    ],
    ids=["same", "second", "threshold", "noises", "rule"],
)
def test_what_gives_no_mask_is_an_error(
    model: StableDiffusion, inversion: Inversion, prompt: str, settings: dict[str, object],
    message: str,
) -> None:  # fmt: skip
    with pytest.raises(ValueError, match=message):
        diffedit(model, inversion, prompt, **({"noises": 1} | settings))


def test_embeddings_that_are_the_same_are_found_whatever_the_words(
    model: StableDiffusion, image: torch.Tensor
) -> None:
    """At mix 0 an edit by prompt tuning is the source, be its words others."""
    tuned = invert(model, image, "a cat", steps=2, method="prompt-tuning", inner_steps=1)
    with pytest.raises(ValueError, match="'a dog', whose noise differs nowhere"):
        diffedit(model, tuned, "a dog", mix=0, noises=1)
    assert diffedit(model, tuned, "a cat", mix=1, noises=1).masks is not None


def test_a_trajectory_is_needed(model: StableDiffusion, image: torch.Tensor) -> None:
    encoded = invert(model, image, "a cat", steps=2, method="autoencoder")
    with pytest.raises(ValueError, match="no trajectory for DiffEdit: .* sdedit, masked"):
        diffedit(model, encoded, TIGER)
