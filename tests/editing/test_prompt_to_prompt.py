from collections.abc import Iterator

import pytest
import torch
from published_batch import published_edit

from nti import Inversion, StableDiffusion, edit
from nti.editing.controls import cross_windows, equalizer
from tolerances import assert_close

TIGER = "a tiger sitting next to a mirror"
SMALL = "a small cat sitting next to a mirror"


def test_editing_to_the_same_prompt_reproduces_the_trajectory(
    model: StableDiffusion, inversion: Inversion
) -> None:
    result = edit(model, inversion, inversion.prompt, cross_replace=1.0, self_replace=1.0)
    assert_close(result.latents[:, 0], inversion.latents)


@pytest.mark.parametrize("replay", [True, False], ids=["replay", "published"])
@pytest.mark.parametrize(
    ("prompts", "mode", "cross", "reweight"),
    [
        ([TIGER], "replace", 0.8, None),
        ([SMALL], "refine", 0.4, None),
        ([SMALL], "refine", 0.5, {"small": 3.0, "mirror": -1.0}),
        (["a hummingbird sitting next to a mirror"], "replace", {"hummingbird": (0.2, 0.6)}, None),
        (["a cat sitting next to a mirror"], "reweight", 1.0, {"cat": 4.0}),
        ([TIGER, SMALL], ["replace", "refine"], [0.3, 0.9], [{"tiger": 2.0}, None]),
    ],
    ids=["replace", "refine", "refine+reweight", "word-window", "reweight", "two-edits"],
)
def test_an_edit_is_the_published_one(
    monkeypatch: pytest.MonkeyPatch,
    model: StableDiffusion,
    inversion: Inversion,
    replay: bool,
    prompts: list[str],
    mode: str | list[str],
    cross: object,
    reweight: object,
) -> None:
    result = edit(
        model,
        inversion,
        prompts,
        mode=mode,
        cross_replace=cross,
        self_replace=0.4,
        reweight=reweight,
        replay=replay,
    )
    targets = [model.tokenizer.encode(p) for p in prompts]
    each = [x if isinstance(x, list) else [x] * len(prompts) for x in (cross, reweight)]
    expected = published_edit(
        monkeypatch,
        model,
        inversion,
        prompts,
        result.alignments,
        cross_windows(each[0], targets, inversion.steps),
        equalizer(each[1], targets),
        range(int(0.4 * inversion.steps)),
    )
    assert_close(result.latents, expected[:, 1:])
    assert not torch.allclose(result.latents[-1, 0], inversion.latents[-1], rtol=1e-3)


def test_edits_of_one_batch_equal_edits_alone(model: StableDiffusion, inversion: Inversion) -> None:
    both = edit(model, inversion, [TIGER, SMALL])
    for i, prompt in enumerate([TIGER, SMALL]):
        alone = edit(model, inversion, prompt)
        assert_close(both.latents[:, i], alone.latents[:, 0])
        assert both.alignments[i].mode == alone.alignments[0].mode == ["replace", "refine"][i]


def test_starting_part_way_counts_windows_from_step_0(
    model: StableDiffusion, inversion: Inversion
) -> None:
    """Where everything is injected up to the start, starting there changes nothing."""
    settings = {"cross_replace": 0.6, "self_replace": 0.6}
    whole = edit(model, inversion, inversion.prompt, **settings)
    late = edit(model, inversion, inversion.prompt, start=4, **settings)
    assert late.latents.shape[0] == whole.latents.shape[0] - 4
    assert_close(late.latents, whole.latents[4:])


def test_blending_keeps_the_source_outside_the_mask(
    model: StableDiffusion, inversion: Inversion
) -> None:
    result = edit(
        model, inversion, TIGER, blend=("cat", "tiger"), subtract="mirror", self_replace=0.2
    )
    assert result.masks is not None and result.masks.shape == (10, 1, 8, 8)
    assert result.masks[:2].all(), "blending begins at step int(0.2 T)"
    for mask, latent, source in zip(
        result.masks[2:, 0], result.latents[3:, 0], inversion.latents[3:], strict=True
    ):
        assert not mask.all()
        assert torch.equal(latent[:, ~mask], source[:, ~mask])
        if mask.any():
            assert not torch.equal(latent[:, mask], source[:, mask])


def test_an_edit_without_blend_words_is_not_masked_by_its_neighbours(
    model: StableDiffusion, inversion: Inversion
) -> None:
    both = edit(
        model, inversion, [TIGER, SMALL], blend=[("cat", "tiger"), None], subtract=["mirror", None]
    )
    assert both.masks is not None and both.masks[:, 1].all() and not both.masks[-1, 0].all()
    assert_close(both.latents[:, 1], edit(model, inversion, SMALL).latents[:, 0])


class Dispatched(Exception):
    """The math kernel was asked for."""


@pytest.fixture
def no_math_kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail where attention on the working path would choose the kernel that keeps the maps."""
    plain = torch.nn.functional.scaled_dot_product_attention

    def checked(*tensors: torch.Tensor) -> torch.Tensor:
        if torch._fused_sdp_choice(*tensors) == torch.nn.attention.SDPBackend.MATH.value:
            raise Dispatched(str([t.shape for t in tensors[:3]]))
        return plain(*tensors)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", checked)
    yield


@pytest.mark.usefixtures("no_math_kernel")
def test_the_math_kernel_is_never_dispatched(model: StableDiffusion, inversion: Inversion) -> None:
    q = torch.randn(1, 2, 64, 8)
    with pytest.raises(Dispatched):
        torch.nn.functional.scaled_dot_product_attention(q, q[:, :, :7], q[:, :, :7, :3])
    edit(model, inversion, [TIGER, SMALL], blend=[("cat", "tiger"), ("cat", "cat")])
    model.decode_latent(model.encode_image(torch.zeros(1, 3, 64, 64)))
    context = model.encode_text([""]).requires_grad_()
    model.predict_noise(inversion.latents[:1], 981, context).sum().backward()
    assert context.grad is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "swap"}, "mode: got 'swap', expected one of auto"),
        ({"cross_replace": 1.5}, r"cross_replace: got 1.5, expected a number in \[0, 1\]"),
        ({"self_replace": (0.8, 0.2)}, "self_replace: got"),
        ({"blend": ("dog", "wolf")}, "'dog' is not in the prompt"),
        ({"subtract": "window"}, "'window' is not in the prompt"),
        ({"reweight": {"lion": 2.0}}, "'lion' is not in the prompt 'a tiger"),
        ({"cross_replace": {"lion": 0.2}}, "'lion' is not in the prompt 'a tiger"),
        ({"start": 10}, "start: got 10, expected 0 to 9"),
        ({"mode": ["replace", "refine"]}, "mode: got a list of 2, expected 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_do_not_fit_say_what_was_expected(
    model: StableDiffusion, inversion: Inversion, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        edit(model, inversion, TIGER, **settings)


def test_an_inversion_of_another_model_is_refused(
    embedded: StableDiffusion, inversion: Inversion
) -> None:
    with pytest.raises(ValueError, match="got one made with tiny .* expected shapes"):
        edit(embedded, inversion, TIGER)
