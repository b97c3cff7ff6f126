from collections.abc import Iterator

import pytest
import torch

from nti import Inversion, StableDiffusion, edit, reconstruct
from nti.networks.control import AttentionControl, Fold, MapCollector
from nti.sampling.step import controlled_noise
from tolerances import assert_close, relative_error

TIGER = "a tiger sitting next to a mirror"
SMALL = "a small cat sitting next to a mirror"


def test_editing_to_the_same_prompt_reproduces_the_trajectory(
    model: StableDiffusion, inversion: Inversion
) -> None:
    result = edit(model, inversion, inversion.prompt, cross_replace=1.0, self_replace=1.0)
    assert_close(result.latents[:, 0], inversion.latents)


def test_edits_of_one_batch_equal_edits_alone(model: StableDiffusion, inversion: Inversion) -> None:
    both = edit(model, inversion, [TIGER, SMALL])
    for i, prompt in enumerate([TIGER, SMALL]):
        alone = edit(model, inversion, prompt)
        assert_close(both.latents[:, i], alone.latents[:, 0])
        assert both.alignments[i].mode == alone.alignments[0].mode == ["replace", "refine"][i]


def test_windows_that_have_closed_before_the_start_are_closed(
    model: StableDiffusion, inversion: Inversion
) -> None:
    never = edit(model, inversion, TIGER, cross_replace=0.0, self_replace=0.0, start=4)
    closed = edit(model, inversion, TIGER, cross_replace=0.4, self_replace=0.4, start=4)
    still_open = edit(model, inversion, TIGER, cross_replace=0.8, self_replace=0.4, start=4)
    assert never.latents.shape[0] == 7
    assert_close(closed.latents, never.latents)
    assert relative_error(still_open.latents, never.latents) > 1e-3


def test_rows_a_step_are_2e_plus_1_then_2e_and_2e_plus_2_as_published(
    monkeypatch: pytest.MonkeyPatch, model: StableDiffusion, inversion: Inversion
) -> None:
    rows: list[int] = []
    forward = model.unet.forward

    def counted(latent: torch.Tensor, *rest: object) -> tuple[torch.Tensor, torch.Tensor | None]:
        rows.append(len(latent))
        return forward(latent, *rest)

    monkeypatch.setattr(model.unet, "forward", counted)
    settings = {"cross_replace": 0.4, "self_replace": 0.6}
    edit(model, inversion, [TIGER, SMALL], **settings)
    assert rows == [5] * 6 + [4] * 4
    rows.clear()
    edit(model, inversion, [TIGER, SMALL], **settings, replay=False)
    assert rows == [6] * 10
    rows.clear()
    edit(model, inversion, TIGER, **settings, blend=("cat", "tiger"))
    assert rows == [3] * 10


@pytest.mark.parametrize("replay", [True, False], ids=["replay", "published"])
def test_the_source_keeps_the_inversions_guidance(
    model: StableDiffusion, inversion: Inversion, replay: bool
) -> None:
    same = edit(model, inversion, TIGER, replay=replay)
    other = edit(model, inversion, TIGER, replay=replay, guidance_scale=1.5)
    assert other.source.tobytes() == same.source.tobytes()
    assert other.source.tobytes() == reconstruct(model, inversion).tobytes()
    assert relative_error(other.latents, same.latents) > 1e-3


def test_captured_maps_are_those_that_the_fold_applies(
    model: StableDiffusion, inversion: Inversion
) -> None:
    """Maps sum to 1 without an edit, and the edited row's are P_source A + P_edit diag(b)."""
    cond = model.encode_text([inversion.prompt, TIGER])
    latent = inversion.latents[:2]
    g = torch.Generator().manual_seed(3)
    fold = Fold(
        source_rows=torch.tensor([0]),
        source_mix=torch.rand(1, 77, 77, generator=g, dtype=torch.float64),
        own_mix=torch.rand(1, 77, generator=g, dtype=torch.float64),
    )
    control = AttentionControl(fold, self_rows=torch.tensor([0, 0]))
    plain, edited = MapCollector(), MapCollector()
    controlled_noise(model.unet, latent, torch.tensor(981), cond, None, plain)
    controlled_noise(model.unet, latent, torch.tensor(981), cond, control, edited)
    assert [(m.site.place, m.site.level, m.site.kind) for m in plain.maps] == [
        (place, level, kind)
        for place, level in [("down", 0), ("down", 1), ("middle", 1)]
        + [("up", 1)] * 2
        + [("up", 0)] * 2
        for kind in ("self", "cross")
    ]
    for found in plain.maps:
        assert found.probabilities.shape[:2] == (2, 2)
        assert_close(found.probabilities.sum(dim=-1), torch.ones_like(found.probabilities[..., 0]))
    # Up to the first cross-attention both passes are the same.
    before, after = plain.maps[1].probabilities, edited.maps[1].probabilities
    assert_close(after[0], before[0])
    assert_close(after[1], before[0] @ fold.source_mix[0] + before[1] * fold.own_mix[0])
    injected = next(
        m.probabilities for m in edited.maps if (m.site.kind, m.site.level) == ("self", 1)
    )
    assert torch.equal(injected[0], injected[1])
    only = MapCollector(frozenset({"cross"}), frozenset({1}))
    controlled_noise(model.unet, latent, torch.tensor(981), cond, None, only)
    assert {(m.site.kind, m.site.level) for m in only.maps} == {("cross", 1)}


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
    model.steps.noise(inversion.latents[:1], torch.tensor(981), context).sum().backward()
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
        ({"self_replace": [0.1, 0.8]}, "self_replace: got"),
        ({"cross_replace": (0.1, 0.5, 0.8)}, "cross_replace: got"),
        ({"reweight": {"tiger": float("nan")}}, "got nan, expected a finite number"),
        ({"reweight": {"tiger": "2"}}, "got '2', expected a finite number"),
        ({"guidance_scale": float("inf")}, "guidance_scale: got inf"),
        ({"mode": "reweight"}, "expected the same prompt twice"),
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


def test_each_edit_has_its_own_windows(model: StableDiffusion, inversion: Inversion) -> None:
    prompts = ["a dog sitting next to a mirror", "a tiger sitting next to a mirror"]
    windows = [0.8, (0.2, 0.4)]
    together = edit(model, inversion, prompts, cross_replace=0.2, self_replace=windows)
    for number, (prompt, window) in enumerate(zip(prompts, windows, strict=True)):
        alone = edit(model, inversion, prompt, cross_replace=0.2, self_replace=window)
        assert_close(together.latents[:, number], alone.latents[:, 0])
        other = edit(model, inversion, prompt, cross_replace=0.2, self_replace=windows[1 - number])
        assert relative_error(other.latents[-1], alone.latents[-1]) > 1e-3
    with pytest.raises(ValueError, match="self_replace: got a list of 1, expected 2"):
        edit(model, inversion, prompts, self_replace=[0.5])
