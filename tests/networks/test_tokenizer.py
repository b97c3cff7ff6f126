"""Token ids against open_clip's and transformers', the padding, the spans and what is cut."""

import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nti.networks.tokenizer import BOS, EOT, Tokenizer, clean

PROMPTS = [
    "",
    "a cat sitting next to a mirror",
    "A  Photo of\ta CAT, sitting.",
    "an axolotl with 1984 stars, it's 3.5 m long!",
    "a café in Zürich, naïve über-art",
    "a 🐱 and a 👨‍👩‍👧 ⭐⭐",
    "हिन्दी और 日本語",
    "'dog' &amp; \"cat\" -- don't; they'll, rock'n'roll",
]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer()


@pytest.fixture(scope="module")
def clip():
    return pytest.importorskip("open_clip.tokenizer").SimpleTokenizer()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_are_open_clips_padding_aside(tokenizer, clip, prompt):
    ids = tokenizer.encode(prompt).ids
    expected = [BOS, *clip.encode(prompt), EOT]
    assert ids[: len(expected)] == tuple(expected)
    assert set(ids[len(expected) :]) == {EOT}


@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_are_those_of_transformers_padding_included(tokenizer, clip, prompt):
    transformers = pytest.importorskip("transformers")
    names = {BOS: "<|startoftext|>", EOT: "<|endoftext|>"}
    vocab = {names.get(i, token): i for token, i in clip.encoder.items()}
    merges = sorted(clip.bpe_ranks, key=clip.bpe_ranks.get)
    theirs = transformers.CLIPTokenizer(vocab=vocab, merges=merges)
    # Given the cleaned text: whether transformers unescapes and repairs depends on its version.
    encoded = theirs(clean(prompt), padding="max_length", max_length=77, truncation=True)
    assert tokenizer.encode(prompt).ids == tuple(encoded["input_ids"])


def test_a_known_prompt_has_its_known_ids(tokenizer):
    assert tokenizer.encode("a cat").ids == (49406, 320, 2368, *[49407] * 74)


def test_the_batch_is_an_int64_tensor_of_the_ids(tokenizer):
    prompts = ["a cat", "", "an axolotl"]
    batch = tokenizer(prompts)
    assert batch.dtype == torch.int64
    assert batch.tolist() == [list(tokenizer.encode(p).ids) for p in prompts]
    assert tokenizer([]).shape == (0, 77)


def test_a_single_string_is_refused_as_a_batch(tokenizer):
    with pytest.raises(ValueError, match="one string 'a cat'"):
        tokenizer("a cat")


def test_a_context_without_room_for_a_token_is_refused():
    with pytest.raises(ValueError, match="got 2"):
        Tokenizer(context_length=2)


def test_text_is_cleaned_and_lower_cased(tokenizer):
    assert tokenizer.encode("  A  Caf\u0065\u0301 &amp;\n CAT ").text == "a café & cat"


def test_spans_split_a_word_into_its_pieces(tokenizer):
    prompt = tokenizer.encode("A  capybara, 42")
    assert prompt.text == "a capybara, 42"
    assert prompt.spans == ((0, 1), (2, 5), (5, 6), (6, 10), (10, 11), (12, 13), (13, 14))
    assert prompt.pieces == ("a", "cap", "y", "bara", ",", "4", "2")
    assert prompt.end == 8
    assert prompt.ids[prompt.end - 1] != EOT
    assert prompt.ids[prompt.end] == EOT


def test_spans_count_characters_not_bytes(tokenizer):
    prompt = tokenizer.encode("naïve é x")
    assert prompt.pieces == ("na", "ï", "ve", "é", "x")
    assert prompt.spans == ((0, 2), (2, 3), (3, 5), (6, 7), (8, 9))


def test_pieces_of_one_emoji_share_its_span(tokenizer):
    prompt = tokenizer.encode("👨‍👩‍👧 x")  # three people joined by zero-width joiners
    assert prompt.spans == ((0, 2), (2, 4), (4, 5), (4, 5), (6, 7))


def test_control_tokens_cannot_be_written_into_a_prompt(tokenizer):
    for text in ("a <end_of_text> cat", "a <start_of_text> cat", "a <|endoftext|> cat"):
        prompt = tokenizer.encode(text)
        assert not {BOS, EOT} & set(prompt.ids[1 : prompt.end])


@pytest.mark.parametrize("count", [75, 76, 100])
def test_exactly_what_exceeds_75_tokens_is_cut_and_named(tokenizer, count):
    words = ["cat"] * 74 + [f"dog{'' if count == 75 else ' tiger'}"] + ["bird"] * (count - 76)
    text = " ".join(words)
    prompt = tokenizer.encode(text)
    rest = text.partition("dog")[2].strip()
    assert prompt.cut == rest
    assert prompt.text.endswith("cat dog")
    assert len(prompt.spans) == 75
    assert len(prompt.ids) == 77
    assert prompt.ids[-1] == EOT


def test_the_tokenizer_never_warns_and_leaves_the_filters_alone(tokenizer):
    """A warning filter is the process's: set in two threads at once, one of them stays for good."""
    before = list(warnings.filters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer(["a cat", "cat " * 75 + "tiger"])
    assert warnings.filters == before


def test_a_word_cut_in_two_is_cut_at_its_piece(tokenizer):
    prompt = tokenizer.encode("cat " * 74 + "capybara")
    assert prompt.text.endswith("cat cap")
    assert prompt.cut == "ybara"


def test_another_context_length_cuts_and_pads_to_it():
    prompt = Tokenizer(context_length=4).encode("a cat sat")
    assert prompt.cut == "sat" and prompt.ids == (BOS, 320, 2368, EOT)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=25))
def test_spans_are_ordered_and_leave_out_only_white_space(tokenizer, text):
    prompt = tokenizer.encode(text)
    assert len(prompt.spans) == len(prompt.pieces) == prompt.end - 1
    assert all(start < end for start, end in prompt.spans)
    assert list(prompt.spans) == sorted(prompt.spans)
    covered = {i for start, end in prompt.spans for i in range(start, end)}
    assert all(c.isspace() for i, c in enumerate(prompt.text) if i not in covered)
    assert [prompt.text[a:b] for a, b in prompt.spans] == list(prompt.pieces)
