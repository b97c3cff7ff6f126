"""Words and their tokens, and the maps that replace and refine make of two prompts."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from nti.editing.alignment import (
    align,
    align_refine,
    align_replace,
    choose_mode,
    has_word,
    identity,
    token_positions,
    words_of,
)
from nti.networks.tokenizer import Tokenizer
from prompt_pairs import pairs, quick

ALIGNERS = pytest.mark.parametrize("align", [align_replace, align_refine])

# What people type: capitals, digits, accents, quotes, hyphens, words that BPE splits.
TYPED = ["A", "CAT", "cat", "capybara", "Don't", "well-known", "'dog'", '"frame"', "3D", "1984"] + [
    *("Café", "nai\u0308ve", "हिन्दी", "don’t", "x's", "(mirror)", "ß", "#1", "&amp;b")
]
BETWEEN = [" ", " ", "  ", ", ", "\t", "... ", " - ", " 🐱 ", " 👨‍👩‍👧, ", " ' ", " -- ", ". \n"]


@st.composite
def typed_pairs(draw):
    """Draw two prompts of equally many words as people type them, some beyond 75 tokens."""
    count = draw(st.integers(0, 30))

    def prompt():
        words = draw(st.lists(st.sampled_from(TYPED), min_size=count, max_size=count))
        marks = draw(st.lists(st.sampled_from(BETWEEN), min_size=count + 1, max_size=count + 1))
        return marks[0] + "".join(w + m for w, m in zip(words, marks[1:], strict=True))

    return prompt(), prompt()


def entries(alignment, rows, columns):
    """Return the part of M ahead of the pads as {(source, target): weight}."""
    block = alignment.mapping[:rows, :columns]
    return {(i, j): block[i, j].item() for i, j in block.nonzero().tolist()}


def assert_pads_read_their_own_position(alignment, source, target):
    """The end token reads the end token; a pad reads what is a pad in both prompts."""
    assert alignment.mapping[:, target.end].nonzero().flatten().tolist() == [source.end]
    assert alignment.mapping[source.end, target.end] == 1
    for position in range(target.end + 1, 77):
        column = alignment.mapping[:, position]
        if position > source.end:
            assert column.nonzero().flatten().tolist() == [position]
            assert column.sum() == 1 and alignment.own[position] == 0
        else:
            assert not column.any() and alignment.own[position] == 1
    assert not alignment.mapping[source.end + 1 : target.end + 1].any()


# Words


def test_words_hold_no_punctuation_and_know_their_tokens(encode):
    words = words_of(encode('A  cat, "sitting" - on (1984) capybara\'s well-known mat...'))
    assert [w.text for w in words] == [
        *("a", "cat", "sitting", "on", "1984", "capybara's", "well-known", "mat")
    ]
    assert [w.tokens for w in words] == [
        *((1,), (2,), (5,), (8,), (10, 11, 12, 13), (15, 16, 17, 18), (19, 20, 21), (22,))
    ]


def test_word_spans_point_into_the_cleaned_text(encode):
    prompt = encode("  The  Café &amp; naïve 🐱 cat")
    assert [prompt.text[w.start : w.end] for w in words_of(prompt)] == [
        *("the", "café", "naïve", "cat")
    ]


def test_emoji_and_stray_signs_are_no_words(encode):
    assert words_of(encode("❤️ 🐱 - ' -- ,")) == []


def test_combining_marks_do_not_break_a_word(encode):
    assert [w.text for w in words_of(encode("हिन्दी और"))] == ["हिन्दी", "और"]


def test_a_quoted_word_keeps_the_token_that_its_quote_shares(encode):
    prompt = encode("a 'dog'")  # split as a, 'd, og, '
    assert token_positions(prompt, "dog") == (2, 3)


@pytest.mark.parametrize(
    ("prompt", "word", "expected"),
    [
        pytest.param("a cat, sitting", "cat", (2,), id="before-comma"),
        pytest.param("a cat, sitting", "sitting", (4,), id="after-comma"),
        pytest.param("a  cat   sitting", "sitting", (3,), id="several-spaces"),
        pytest.param("A CAT sitting", "cat", (2,), id="capitals-in-prompt"),
        pytest.param("a cat sitting", " CaT ", (2,), id="capitals-in-word"),
        pytest.param("a cat and a cat", "cat", (2, 5), id="every-occurrence"),
        pytest.param("a catalog of a cat", "cat", (5,), id="not-inside-a-word"),
        pytest.param("a bobcat cat", "cat", (3,), id="not-at-the-end-of-a-word"),
        pytest.param("a capybara swims", "capybara", (2, 3, 4), id="split-by-bpe"),
        pytest.param("a capybara swims", "swims", (5,), id="after-a-split-word"),
        pytest.param("a mirror frame", "mirror  Frame", (2, 3), id="phrase"),
        pytest.param("a mirror frame, mirror", "mirror", (2, 5), id="phrase-part"),
        pytest.param("cat cat cat", "cat cat", (1, 2, 3), id="phrase-overlapping-itself"),
        pytest.param("in 1984 it", "1984", (2, 3, 4, 5), id="digits"),
        pytest.param("a caf\u0065\u0301 scene", "café", (2,), id="decomposed-accent"),
        pytest.param("a café scene", "caf\u0065\u0301", (2,), id="decomposed-accent-in-word"),
        pytest.param("a naïve cat", "naïve", (2, 3, 4), id="accent-split-by-bpe"),
        pytest.param("a naïve cat", "cat", (5,), id="after-an-accent"),
        pytest.param("a 🐱 naps", "🐱", (2,), id="emoji"),
        pytest.param("👨‍👩‍👧 cat", "cat", (5,), id="after-an-emoji-of-many-tokens"),
        pytest.param("a well-known cat", "well-known", (2, 3, 4), id="hyphen"),
        pytest.param("a dog don’t", "don't", (3, 4), id="curly-apostrophe"),
    ],
)
def test_tokens_are_found_by_the_characters_they_cover(encode, prompt, word, expected):
    assert token_positions(encode(prompt), word) == expected
    assert has_word(encode(prompt), word)


@pytest.mark.parametrize("word", ["lion", "sit", "cat sitting", "", "  ", "og"])
def test_a_word_that_is_not_there_is_named_with_the_words_that_are(encode, word):
    prompt = encode("a cat, sitting dog")
    assert not has_word(prompt, word)
    with pytest.raises(ValueError) as error:
        token_positions(prompt, word)
    assert str(error.value).startswith(repr(word))
    assert "its words: 'a', 'cat', 'sitting', 'dog'" in str(error.value)


def test_a_word_that_was_cut_for_length_says_so(encode):
    prompt = encode("cat " * 75 + "tiger")
    with pytest.raises(ValueError, match="'tiger' is not in .*cut for length: 'tiger'"):
        token_positions(prompt, "tiger")


# Replace


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        pytest.param("a cat ran", "a dog ran", {(2, 2): 1, (3, 3): 1}, id="1-to-1"),
        pytest.param(
            "a cat ran", "a armadillo ran", {(2, 2): 1 / 2, (2, 3): 1 / 2, (3, 4): 1}, id="1-to-2"
        ),
        pytest.param(
            "a armadillo ran", "a cat ran", {(2, 2): 1, (3, 2): 1, (4, 3): 1}, id="2-to-1"
        ),
        pytest.param(
            "a armadillo ran",
            "a capybara ran",
            {(i, j): 1 / 3 for i in (2, 3) for j in (2, 3, 4)} | {(4, 5): 1},
            id="2-to-3",
        ),
        pytest.param(
            "a armadillo ran", "a unicycle ran", {(2, 2): 1, (3, 3): 1, (4, 4): 1}, id="2-to-2"
        ),
        pytest.param(
            "a cat armadillo ran",
            "a unicycle dog ran",
            {(2, 2): 1 / 2, (2, 3): 1 / 2, (3, 4): 1, (4, 4): 1, (5, 5): 1},
            id="two-swaps",
        ),
        pytest.param(
            "a cat, ran", "a armadillo, ran", {(2, 2): 0.5, (2, 3): 0.5, (3, 4): 1, (4, 5): 1},
            id="comma-in-both",
        ),
        pytest.param("a cat, ran", "a dog ran", {(2, 2): 1, (3, 2): 1, (4, 3): 1}, id="comma-lost"),
        pytest.param("a cat ran", "a dog, ran", {(2, 2): 1, (3, 4): 1}, id="comma-new"),
        pytest.param(
            "a cat , ! ran", "a dog ; ran", {(2, 2): 1, (3, 3): 1, (4, 3): 1, (5, 4): 1},
            id="two-marks-to-one",
        ),
        pytest.param("a cat ran.", "a dog ran", {(2, 2): 1, (3, 3): 1, (4, 3): 1}, id="stop-lost"),
    ],
)  # fmt: skip
def test_replacement_maps_word_to_word(encode, source, target, expected):
    source, target = encode(source), encode(target)
    alignment = align_replace(source, target)
    assert alignment.mode == "replace"
    assert entries(alignment, source.end, target.end) == {(0, 0): 1, (1, 1): 1} | expected
    assert_pads_read_their_own_position(alignment, source, target)


def test_a_leading_mark_that_is_lost_goes_to_the_beginning(encode):
    source, target = encode('"cat'), encode("cat")
    assert entries(align_replace(source, target), 3, 2) == {(0, 0): 1, (1, 0): 1, (2, 1): 1}


def test_new_punctuation_keeps_its_own_attention(encode):
    alignment = align_replace(encode("a cat ran"), encode("a dog, ran"))
    assert alignment.own.nonzero().flatten().tolist() == [3]


def test_replacement_refuses_another_number_of_words(encode):
    with pytest.raises(ValueError) as error:
        align_replace(encode("a cat, here"), encode("a big cat here"))
    for part in ("got 3 ['a', 'cat', 'here']", "4 ['a', 'big', 'cat', 'here']", "use refine"):
        assert part in str(error.value)


@quick
@given(pairs(same_words=True))
def test_every_source_row_of_a_replacement_sums_to_one(encode, prompts):
    source, target = map(encode, prompts)
    mapping = align_replace(source, target).mapping
    expected = torch.ones(77, dtype=torch.float64)
    expected[source.end + 1 : target.end + 1] = 0.0  # pads where the target has words or its end
    assert mapping.dtype == torch.float64
    torch.testing.assert_close(mapping.sum(1), expected)


@quick
@given(typed_pairs())
def test_each_word_as_people_type_it_gives_all_its_attention_to_its_counterpart(encode, prompts):
    source, target = map(encode, prompts)
    ours, theirs = words_of(source), words_of(target)
    assume(len(ours) == len(theirs))  # fails only where a prompt was cut
    mapping = align_replace(source, target).mapping
    for old, new in zip(ours, theirs, strict=True):
        received = mapping[list(old.tokens)][:, list(new.tokens)].sum(1)
        torch.testing.assert_close(received, torch.ones_like(received))
    torch.testing.assert_close(
        mapping[: source.end].sum(1), torch.ones(source.end, dtype=torch.float64)
    )


def test_a_swap_late_in_a_full_prompt_costs_a_pad_and_no_word(encode):
    """75 tokens to 75: nothing is cut. One token more, and what is cut is said."""
    source, target = encode("cat " * 73 + "armadillo"), encode("cat " * 73 + "unicycle")
    assert source.end == target.end == 76
    assert torch.equal(align_replace(source, target).mapping, identity().mapping)
    source, target = encode("cat " * 73 + "dog"), encode("cat " * 73 + "armadillo")
    mapping = align_replace(source, target).mapping
    assert mapping[74, 74:76].tolist() == [0.5, 0.5]
    assert mapping[75, 76] == 1 and not mapping[76].any()
    target = encode("cat " * 73 + "capybara")
    assert align_replace(source, target).mapping[74, 74:76].tolist() == [0.5, 0.5]


# Refine


@pytest.mark.parametrize(
    ("source", "target", "pairs", "own"),
    [
        pytest.param("a cat", "watercolor a cat", [(1, 2), (2, 3)], [1], id="insert-first"),
        pytest.param("a cat", "a silver cat", [(1, 1), (2, 3)], [2], id="insert-middle"),
        pytest.param("a cat", "a cat sitting", [(1, 1), (2, 2)], [3], id="insert-last"),
        pytest.param("a cat", "a armadillo cat", [(1, 1), (2, 4)], [2, 3], id="insert-two-tokens"),
        pytest.param("a big cat", "a cat", [(1, 1), (3, 2)], [], id="remove-middle"),
        pytest.param("a cat", "cat", [(2, 1)], [], id="remove-first"),
        pytest.param("a cat ran", "a cat", [(1, 1), (2, 2)], [], id="remove-last"),
        pytest.param("a cat ran", "a dog ran", [(1, 1), (3, 3)], [2], id="swap"),
        # Traced from the end, left before up before diagonal: of equal tokens the first is kept.
        pytest.param("a a", "a", [(1, 1)], [], id="tie-of-source-tokens"),
        pytest.param("a", "a a", [(1, 1)], [2], id="tie-of-target-tokens"),
        pytest.param("cat dog", "dog cat", [(2, 1)], [2], id="tie-left-before-up"),
        pytest.param("", "a cat", [], [1, 2], id="from-empty"),
        pytest.param("a cat", "", [], [], id="to-empty"),
    ],
)
def test_refinement_maps_the_shared_tokens_in_order(encode, source, target, pairs, own):
    source, target = encode(source), encode(target)
    alignment = align_refine(source, target)
    assert alignment.mode == "refine"
    expected = dict.fromkeys([(0, 0), *pairs], 1)
    assert entries(alignment, source.end, target.end) == expected
    assert alignment.own[: target.end].nonzero().flatten().tolist() == own
    assert_pads_read_their_own_position(alignment, source, target)


@quick
@given(pairs())
def test_refinement_maps_only_equal_tokens_and_keeps_their_order(encode, prompts):
    source, target = map(encode, prompts)
    alignment = align_refine(source, target)
    mapped = sorted(entries(alignment, source.end, target.end))
    assert all(source.ids[i] == target.ids[j] for i, j in mapped)
    rows, columns = zip(*mapped, strict=True)
    assert len(set(rows)) == len(set(columns)) == len(mapped)
    assert list(columns) == sorted(columns)


@quick
@given(pairs())
def test_what_keeps_its_own_attention_receives_none(encode, prompts):
    source, target = map(encode, prompts)
    for alignment in [align_refine(source, target)] + (
        [align_replace(source, target)] if choose_mode(source, target) == "replace" else []
    ):
        received = alignment.mapping.sum(0)
        assert set(alignment.own.tolist()) <= {0.0, 1.0}
        assert not received[alignment.own == 1].any()
        assert (received[alignment.own == 0] > 0).all()
        assert_pads_read_their_own_position(alignment, source, target)


@ALIGNERS
@quick
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=25))
def test_equal_prompts_give_the_identity_whatever_the_text(encode, align, text):
    prompt = encode(text)
    alignment = align(prompt, prompt)
    assert torch.equal(alignment.mapping, torch.eye(77, dtype=torch.float64))
    assert not alignment.own.any()


@ALIGNERS
@quick
@given(prompts=pairs())
def test_equal_prompts_give_the_identity_with_repeated_words(encode, align, prompts):
    prompt = encode(prompts[0])
    assert torch.equal(align(prompt, prompt).mapping, identity().mapping)


@ALIGNERS
def test_a_full_prompt_without_pads_gives_the_identity(encode, align):
    full = encode("cat " * 80)
    alignment = align(full, full)
    assert torch.equal(alignment.mapping, torch.eye(77, dtype=torch.float64))


@ALIGNERS
def test_prompts_of_other_context_lengths_are_refused(encode, align):
    with pytest.raises(ValueError, match="source 77, target 9"):
        align(encode("a cat"), Tokenizer(context_length=9).encode("a cat"))


def test_identity_is_for_reweighting(encode):
    assert torch.equal(identity().mapping, torch.eye(77, dtype=torch.float64))
    assert not identity().own.any()
    assert identity().mode == "reweight"
    assert identity(9).mapping.shape == (9, 9)


@pytest.mark.parametrize(
    ("source", "target", "mode"),
    [
        ("a cat, sitting", "a capybara sitting", "replace"),
        ("a cat", "a silver cat", "refine"),
        ("a silver cat", "a cat", "refine"),
        ("a  cat", "A DOG!", "replace"),
        ("a purple circle on snow", "on snow a purple circle", "refine"),
        ("a purple circle on snow", "on snow a green circle", "refine"),
        ("a cat and a dog", "a dog and a cat", "refine"),
        ("a big red car", "a red fast car", "refine"),
        ("a red car, a blue car", "a blue car, a blue car", "replace"),  # blue stays where it was
        ("red blue", "blue green", "refine"),
        ("a cat on a mat", "the dog on a mat", "replace"),
    ],
)
def test_the_mode_follows_from_the_number_of_words_and_from_those_that_moved(
    encode, source, target, mode
):
    assert choose_mode(encode(source), encode(target)) == mode


def test_words_that_moved_do_not_take_each_others_attention(encode):
    source, target = encode("a purple circle on snow"), encode("on snow a purple circle")
    alignment = align("auto", source, target)
    assert alignment.mode == "refine"
    for column in range(1, target.end):
        for row in alignment.mapping[:, column].nonzero().flatten().tolist():
            assert source.ids[row] == target.ids[column]


def test_a_replacement_that_was_asked_for_warns_of_words_that_moved(encode):
    source, target = encode("a purple circle on snow"), encode("on snow a green circle")
    message = "'replace' goes by places, and 'on', 'snow', 'a', 'circle' moved in 'on snow a green"
    with pytest.warns(UserWarning, match=message):
        assert align("replace", source, target).mode == "replace"


def test_a_replacement_in_place_warns_of_nothing(encode, recwarn):
    align("replace", encode("a cat on a mat"), encode("a dog on a rug"))
    align("auto", encode("a cat on a mat"), encode("on a mat a cat"))
    assert not recwarn.list


def test_an_unknown_mode_lists_the_modes(encode):
    with pytest.raises(ValueError, match="got 'swap', expected one of auto, replace, refine, rew"):
        align("swap", encode("a"), encode("b"))
