import pytest
import torch

from nti.editing.local_blend import LocalBlend, blend_mask
from nti.networks.tokenizer import TokenizedPrompt, Tokenizer

SOURCE = "a cat sitting next to a mirror"
TIGER = "a tiger sitting next to a mirror"
WINDOW = "a cat sitting next to a window"


@pytest.fixture(scope="module")
def prompts() -> dict[str, TokenizedPrompt]:
    tokenizer = Tokenizer()
    return {text: tokenizer.encode(text) for text in (SOURCE, TIGER, WINDOW)}


def marked(words: torch.Tensor) -> list[int]:
    return words.nonzero().flatten().tolist()


def peak(*places: tuple[int, int], low: float = 0.0) -> torch.Tensor:
    """A 6x6 map of `low` with a 1 at each place."""
    x = torch.full((6, 6), low)
    for place in places:
        x[place] = 1.0
    return x


def test_each_word_is_looked_up_in_its_own_prompt(prompts: dict[str, TokenizedPrompt]) -> None:
    blend = LocalBlend.create(
        prompts[SOURCE],
        [prompts[TIGER], prompts[WINDOW]],
        [("cat", "tiger"), ("mirror", "window")],
        ["mirror", None],
    )
    assert blend is not None and blend.words.shape == (3, 77, 4)
    # Rows: source, tiger, window. Columns: blend and subtract of the first edit, of the second.
    assert [marked(blend.words[0, :, i]) for i in range(4)] == [[2], [7], [7], []]
    assert [marked(blend.words[1, :, i]) for i in range(4)] == [[2], [7], [], []]
    assert [marked(blend.words[2, :, i]) for i in range(4)] == [[], [], [7], []]


def test_no_words_is_no_blend(prompts: dict[str, TokenizedPrompt]) -> None:
    assert LocalBlend.create(prompts[SOURCE], [prompts[TIGER]], [None], [None]) is None


@pytest.mark.parametrize(
    ("setting", "word"),
    [(("cat", "zebra"), "zebra"), (("tiger", "tiger"), "tiger"), ("dog", "dog")],
    ids=["edit-side", "source-side", "both"],
)
def test_a_word_that_is_nowhere_is_named(
    prompts: dict[str, TokenizedPrompt], setting: tuple[str, str] | str, word: str
) -> None:
    with pytest.raises(ValueError, match=f"'{word}' is not in the prompt"):
        LocalBlend.create(prompts[SOURCE], [prompts[TIGER]], [setting], [None])


def test_a_word_is_an_error_only_if_no_edit_has_it(prompts: dict[str, TokenizedPrompt]) -> None:
    edits = [prompts[TIGER], prompts[WINDOW]]
    both = LocalBlend.create(prompts[SOURCE], edits, [("cat", "tiger")] * 2, [None, None])
    assert both is not None and marked(both.words[2]) == []


def test_the_mask_is_pooled_thresholded_and_scaled_up() -> None:
    mask = blend_mask(peak((2, 2), low=0.29)[None], (12, 12), pool=True)[0]
    expected = torch.zeros(12, 12, dtype=torch.bool)
    expected[2:8, 2:8] = True
    assert torch.equal(mask, expected)
    assert torch.equal(
        blend_mask(peak((2, 2), low=0.29)[None], (6, 6), pool=False)[0], peak((2, 2)).bool()
    )
    assert blend_mask(peak((2, 2), low=0.31)[None], (6, 6), pool=False).all()


def test_a_map_that_is_zero_gives_an_empty_mask() -> None:
    assert not blend_mask(torch.zeros(1, 6, 6), (6, 6), pool=True).any()


def test_masks_unite_edit_and_source_and_lose_the_subtracted() -> None:
    nothing = torch.zeros(6, 6)
    maps = torch.stack(
        [
            torch.stack([peak((0, 0)), peak((4, 4)), nothing, nothing]),
            torch.stack([peak((4, 0)), nothing, nothing, nothing]),
            torch.stack([nothing, nothing, peak((0, 4)), nothing]),
        ]
    )
    words = torch.zeros(3, 77, 4)
    first = LocalBlend(words, torch.tensor([True, True]), torch.tensor([True, False]))
    mask = first.mask(maps, (6, 6))
    expected = torch.zeros(6, 6, dtype=torch.bool)
    expected[:2, :2] = expected[3:6, :2] = True
    assert torch.equal(mask[0], expected)
    assert mask[1].nonzero().amin(dim=0).tolist() == [0, 3] and mask[1].sum() == 6
    free = LocalBlend(words, torch.tensor([False, True]), torch.tensor([True, False]))
    mask = free.mask(maps, (6, 6))
    assert mask[0].sum() == 35 and not mask[0, 4, 4]


def blend_of_nothing(**settings: float) -> LocalBlend:
    flags = torch.tensor([True])
    return LocalBlend(torch.zeros(2, 77, 2), flags, flags, **settings)


def test_the_first_blended_step_of_50_is_the_eleventh() -> None:
    assert blend_of_nothing().first_step(50) == 10
    assert blend_of_nothing(start=0.5).first_step(50) == 25


def test_a_higher_threshold_keeps_less() -> None:
    maps = torch.linspace(0, 1, 36).view(1, 6, 6)
    kept = [blend_mask(maps, (6, 6), pool=False, threshold=t).sum().item() for t in (0.0, 0.3, 0.9)]
    assert kept == [35, 25, 4]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": 1.5}, "blend_start: got 1.5, expected 0 to 1, a share of the steps"),
        ({"threshold": 1.0}, "blend_threshold: got 1.0, expected less: no map"),
        ({"threshold": float("nan")}, "blend_threshold: got nan"),
    ],
)
def test_shares_that_cannot_be_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        blend_of_nothing(**settings)
