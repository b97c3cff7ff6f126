"""What holds for every inversion method, on the tiny model."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import nti
from nti import Inversion, InversionSettings, StableDiffusion, invert, invert_batch
from nti.inversion.methods import METHODS, Method, passes
from passes import counting
from plain_loop import PROMPT, Made, N, T, W, read_by
from tolerances import RELATIVE_OPTIMIZED, assert_close, relative_error


@pytest.mark.parametrize("name", METHODS)
def test_it_is_saved_loaded_and_sampled_again(
    model: StableDiffusion, made: Made, name: str, tmp_path: Path
) -> None:
    inversion = made(name)
    inversion.save(tmp_path / "x")
    assert Inversion.load(tmp_path / "x") == inversion
    again = nti.reconstruct_latents(model, inversion)
    assert_close(again[:, 0], inversion.latents)
    assert nti.reconstruct(model, inversion).size == (64, 64)


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_is_what_inverting_one_by_one_gives(model: StableDiffusion, name: str) -> None:
    g = torch.Generator().manual_seed(3)
    images = [torch.rand(1, 3, 64, 64, generator=g).double() * 2 - 1 for _ in range(2)]
    prompts = ["a cat", "two dogs"]
    settings = InversionSettings(
        steps=2, guidance_scale=W, method=name, **read_by(name, inner_steps=2)
    )
    together = invert_batch(model, images, prompts, settings)
    for found, image, prompt in zip(together, images, prompts, strict=True):
        (alone,) = invert_batch(model, [image], [prompt], settings)
        for field in ("pivot", "latents", "uncond", "cond", "offsets"):
            ours, theirs = getattr(found, field), getattr(alone, field)
            assert (ours is None) == (theirs is None)
            if ours is not None and theirs.any():
                error = relative_error(ours, theirs)
                assert error < RELATIVE_OPTIMIZED, f"{field}: {error:.2e}"


@pytest.mark.parametrize("name", [n for n, row in METHODS.items() if row.sampled])
def test_an_image_that_overflows_does_not_take_the_others_along(
    model: StableDiffusion, image: Tensor, name: str
) -> None:
    prompts = ["a cat", "two dogs"]
    bad = model.encode_text(prompts)[1]  # alone it would be rounded differently

    def broken(context: Tensor) -> Tensor:
        """NaN for rows of the bad prompt, 1 elsewhere."""
        rows = (context == bad).flatten(1).all(dim=1)
        return torch.where(rows, torch.nan, 1.0)[:, None, None, None]

    steps = model.steps

    def damaged_noise(latent: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        return steps.noise(latent, timestep, context) * broken(context)

    def damaged_step(z: Tensor, t: Tensor, uncond: Tensor, cond: Tensor, *rest: Any) -> Tensor:
        return steps.guided_step(z, t, uncond, cond, *rest) * broken(cond)

    damaged = dataclasses.replace(steps, noise=damaged_noise, guided_step=damaged_step)
    parts = (model.config, model.unet, model.vae, model.text, model.tokenizer)
    settings = InversionSettings(
        steps=2, guidance_scale=W, method=name, **read_by(name, inner_steps=1)
    )
    with pytest.raises(nti.BatchError) as error:
        invert_batch(StableDiffusion(*parts, damaged), [image, image], prompts, settings)
    assert error.value.results[0] is not None and error.value.results[1] is None


@pytest.mark.parametrize("name", METHODS)
def test_the_callback_hears_the_end(model: StableDiffusion, image: Tensor, name: str) -> None:
    told: list[tuple[int, int]] = []
    invert(
        model, image, PROMPT, method=name, steps=2, guidance_scale=W,
        callback=lambda done, total: told.append((done, total)), **read_by(name, inner_steps=1),
    )  # fmt: skip
    assert told[-1] == (4, 4) and told == sorted(told)


@pytest.mark.parametrize("name", METHODS)
def test_it_costs_what_the_table_says(model: StableDiffusion, image: Tensor, name: str) -> None:
    counted, count = counting(model)
    invert(
        counted, image, PROMPT, method=name, steps=T, guidance_scale=W,
        **read_by(name, inner_steps=N, threshold=lambda index, steps: 0.0),
    )  # fmt: skip
    assert (count.forward, count.backward) == passes(METHODS[name], T, N)


@pytest.mark.filterwarnings("ignore:edit.*its prompt is the source's")
@pytest.mark.parametrize("name", [n for n, row in METHODS.items() if row.sampled])
def test_it_is_edited(model: StableDiffusion, made: Made, name: str) -> None:
    """With the source's prompt and all its attention, an edit is the source."""
    inversion = made(name)
    result = nti.edit(model, inversion, "a dog sitting next to a mirror")
    assert relative_error(result.latents[-1], inversion.latents[-1:]) > 1e-3
    row = inversion.row
    if row.edits_start == "own" and not row.replayed and row.keeps != "offsets":
        same = nti.edit(model, inversion, PROMPT, cross_replace=1.0, self_replace=1.0,
                        mix=None if inversion.cond is None else 0.0)  # fmt: skip
        assert_close(same.latents[:, 0], inversion.latents)


@pytest.mark.parametrize(
    ("name", "pivot"),
    [
        ("null-text-fast", "ddim"),
        ("textual-inversion-pivot", "ddim"),
        ("null-text-global", "ddim"),
        ("ddim", "anderson"),
    ],
)
def test_a_run_that_was_ended_goes_on(
    model: StableDiffusion, image: Tensor, made: Made, name: str, pivot: str, tmp_path: Path
) -> None:
    """Where it was, or at its pivot at least, and to the same bits."""
    settings = {
        "method": name, "pivot": pivot, "steps": T, "guidance_scale": W,
        **read_by(name, inner_steps=N),
    }  # fmt: skip
    counted, count = counting(model)
    path = tmp_path / "state"
    with pytest.raises(nti.Stopped):
        invert(
            counted, image, PROMPT, callback=lambda done, total: done == total // 2 + 1,
            state=nti.StateFile(path, every=0.0), **settings,
        )  # fmt: skip
    before = count.forward
    found = invert(counted, image, PROMPT, state=nti.StateFile(path), **settings)
    assert found == made(name, **({} if pivot == "ddim" else {"pivot": pivot}))
    whole, _ = passes(METHODS[name], T, N)
    saved = T + 2 * METHODS[name].watched  # one timestep after the pivot, its two passes at least
    if pivot == "ddim":
        assert count.forward - before <= whole - saved


@pytest.mark.parametrize("name", ["prompt-tuning", "direct", "edit-friendly", "null-latent"])
def test_what_other_programs_have_no_place_for_is_not_given_to_them(made: Made, name: str) -> None:
    with pytest.raises(ValueError, match=f"inversion: got one by {name}, whose source is not"):
        nti.to_published(made(name))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "magic"}, "method: got 'magic', expected one of null-text, null-text-fast"),
        ({"pivot": "magic"}, "pivot: got 'magic', expected one of ddim, fixed-point, anderson"),
        (
            {"method": "edit-friendly", "pivot": "anderson"},
            "pivot: got 'anderson' for edit-friendly, which does not read it; .* of null-text, ",
        ),
        ({"pull_share": 0.5}, "pull_share: got 0.5 for null-text, which does .* of direct"),
        ({"method": "direct", "pull_share": 2}, r"pull_share: got 2.*expected .*1"),
        ({"method": "direct", "pull_every": 0}, "pull_every: got 0"),
        (
            {"towards_null": 0.5},
            "towards_null: got 0.5 for null-text, .* of null-text-fast, negative-prompt",
        ),
        ({"seed": -1}, "seed: got -1"),
        ({"pivot_iterations": 0}, "pivot_iterations: got 0"),
        ({"pivot_iterations": 3}, "pivot_iterations: got 3 for the pivot ddim, which has none"),
        ({"pivot": "anderson", "noise_at": "current"}, "noise_at: got 'current' for the pivot"),
        ({"method": "null-text-global", "inner_steps": 0}, "inner_steps: got 0"),
        ({"method": "direct", "inner_steps": 500}, "inner_steps: got 500 for direct, which does"),
        (
            {"method": "null-text-fast", "threshold": lambda index, steps: 0.0},
            "threshold: got .* for null-text-fast, which does not .* of null-text, ",
        ),
        (
            {"method": "null-text-random-pivot", "noise_at": "current"},
            "noise_at: got 'current' for null-text-random-pivot, which does not",
        ),
        ({"seed": 1}, "seed: got 1 for null-text, .* null-text-random-pivot, .*, edit-friendly"),
    ],
    ids=lambda x: "-".join(map(str, x)) if isinstance(x, dict) else "",
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InversionSettings(**settings)


def test_every_row_is_documented() -> None:
    for name, row in METHODS.items():
        assert isinstance(row, Method) and row.name == name and row.summary and row.paper
