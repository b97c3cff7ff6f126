"""Alignments written out for people."""

from nti.editing.alignment import align_refine, align_replace
from nti.editing.alignment_table import describe, token_table


def test_the_token_table_numbers_both_prompts_to_the_later_end(encode):
    table = token_table(encode("A cat,"), encode("a armadillo  cat"))
    assert [line.split() for line in table.splitlines()] == [
        ["source", "target"],
        ["0", "49406", "<start>", "49406", "<start>"],
        ["1", "320", "a", "320", "a"],
        ["2", "2368", "cat", "37897", "armad"],
        ["3", "267", ",", "7588", "illo"],
        ["4", "49407", "<end>", "2368", "cat"],
        ["5", "49407", "<pad>", "49407", "<end>"],
    ]


def test_the_description_shows_who_receives_whose_attention(encode):
    source, target = encode("a cat, big"), encode("a armadillo big!")
    lines = [
        " ".join(s.split())
        for s in describe(align_replace(source, target), source, target).splitlines()
    ]
    assert lines == [
        "replace: 'a cat, big' -> 'a armadillo big!'",
        "0 <start> <- 0 <start>",
        "1 a <- 1 a",
        "2 armad <- 2 cat x 0.5",
        "3 illo <- 2 cat x 0.5 + 3 ,",
        "4 big <- 4 big",
        "5 ! <- own",
        "6 <end> <- 5 <end>",
        "70 more pads: 70 from their position in the source, 0 own",
    ]  # fmt: skip


def test_the_description_names_what_is_no_longer_used(encode):
    source, target = encode("a big cat"), encode("a cat")
    text = describe(align_refine(source, target), source, target)
    assert "73 more pads: 72 from their position in the source, 1 own" in text
    assert text.endswith("unused: 2 big")
