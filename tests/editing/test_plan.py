"""A plan is made once, checked once, and serves every inversion of its prompt and length."""

import pytest
import torch

import nti
from nti import EditPlan, Inversion, StableDiffusion
from nti.networks.control import Site
from tolerances import assert_close

TIGER = "a tiger sitting next to a mirror"
SMALL = "a small cat sitting next to a mirror"


def plan_for(model: StableDiffusion, inversion: Inversion, **settings: object) -> EditPlan:
    prompts = [TIGER, SMALL]
    steps = inversion.steps
    return EditPlan.create(model.tokenizer, inversion.prompt, prompts, steps=steps, **settings)


def test_an_edit_is_its_plan_carried_out_and_decoded(
    model: StableDiffusion, inversion: Inversion
) -> None:
    settings = {"blend": [("cat", "tiger"), None], "cross_replace": 0.6, "blend_threshold": 0.4}
    plan = plan_for(model, inversion, **settings)
    whole = nti.edit(model, inversion, [TIGER, SMALL], **settings)
    for _ in range(2):
        edited = nti.edit_latents(model, inversion, plan)
        assert torch.equal(edited.latents, whole.latents)
        assert edited.masks is not None and whole.masks is not None
        assert torch.equal(edited.masks, whole.masks)
    assert edited.source.shape == (1, 4, 8, 8)
    assert [a.mode for a in plan.alignments] == ["replace", "refine"]


def test_a_plan_serves_another_inversion_of_its_prompt(
    model: StableDiffusion, inversion: Inversion
) -> None:
    plan = plan_for(model, inversion)
    other = nti.generate(model, inversion.prompt, seed=1, steps=10)
    edited = nti.edit_latents(model, other, plan).latents
    assert torch.equal(edited, nti.edit(model, other, [TIGER, SMALL]).latents)


def test_an_inversion_that_it_was_not_made_for_is_refused(
    model: StableDiffusion, inversion: Inversion
) -> None:
    plan = plan_for(model, inversion)
    shorter = nti.generate(model, inversion.prompt, steps=5)
    with pytest.raises(ValueError, match=r"plan: got one for 'a cat .* in 10 steps, expected .* 5"):
        nti.edit_latents(model, shorter, plan)
    with pytest.raises(ValueError, match="expected 'a dog' in 10"):
        nti.edit_latents(model, nti.generate(model, "a dog", steps=10), plan)


def test_a_plan_of_no_steps_is_refused(model: StableDiffusion) -> None:
    with pytest.raises(ValueError, match="steps: got 0, expected 1 to 1000, as the inversion has"):
        EditPlan.create(model.tokenizer, "a cat", "a dog", steps=0)


def test_a_later_and_stricter_blend_changes_less(
    model: StableDiffusion, inversion: Inversion
) -> None:
    def mask(**settings: float) -> torch.Tensor:
        made = nti.edit(model, inversion, TIGER, blend=("cat", "tiger"), **settings).masks
        assert made is not None
        return made

    strict = mask(blend_threshold=0.95)
    assert strict[:2].all() and not strict[2:5].all() and not strict[-1].all()
    later = mask(blend_threshold=0.95, blend_start=0.5)
    assert later[:5].all() and not later[5:].all()
    assert strict[-1].sum() < mask(blend_threshold=0.1)[-1].sum()


def test_a_negative_prompt_takes_the_place_of_the_edits_null_embeddings(
    model: StableDiffusion, inversion: Inversion
) -> None:
    made = nti.generate(model, inversion.prompt, steps=5)
    plain, empty, dog = (
        nti.edit(model, made, TIGER, negative_prompt=p) for p in (None, "", "a dog")
    )
    assert_close(plain.latents, empty.latents)  # a generated picture has psi("") anyway
    assert not torch.allclose(dog.latents, plain.latents, rtol=1e-3)
    assert dog.source.tobytes() == plain.source.tobytes(), "the source keeps its own"
    published = nti.edit(model, made, TIGER, negative_prompt="a dog", replay=False)
    assert_close(published.latents, dog.latents)


def test_a_hook_sees_every_map_of_an_edit_and_may_change_it(
    model: StableDiffusion, inversion: Inversion
) -> None:
    class Uniform:
        """Spread the edit's cross-attention over all tokens."""

        rows: set[int]

        def __init__(self) -> None:
            self.rows = set()

        def wants(self, site: Site) -> bool:
            return site.kind == "cross"

        def __call__(self, site: Site, maps: torch.Tensor) -> torch.Tensor:
            self.rows.add(len(maps))
            return torch.cat([maps[:-1], torch.full_like(maps[-1:], 1 / 77)])

    plan = EditPlan.create(model.tokenizer, inversion.prompt, TIGER, steps=10, cross_replace=0.2)
    hook = Uniform()
    changed = nti.edit_latents(model, inversion, plan, hook=hook).latents
    assert hook.rows == {3}, "one layout: an unconditional edit, the source, the edit"
    plain = nti.edit_latents(model, inversion, plan).latents
    assert not torch.allclose(changed[-1], plain[-1], rtol=1e-3)
