"""Refine against the published mapper as it is."""

import pytest
import torch
from hypothesis import given

from nti.editing.alignment import align_refine
from prompt_pairs import pairs, quick


def published_refinement(source, target, length=77):
    """Return the published mapper as it is: for each target position a source position, or None."""
    score = [[0] * (len(target) + 1) for _ in range(len(source) + 1)]
    came_from = [["left"] * (len(target) + 1)] + [
        ["up"] + [""] * len(target) for _ in range(len(source))
    ]
    for i in range(1, len(source) + 1):
        for j in range(1, len(target) + 1):
            left, up = score[i][j - 1], score[i - 1][j]
            diagonal = score[i - 1][j - 1] + (1 if source[i - 1] == target[j - 1] else -1)
            score[i][j] = best = max(left, up, diagonal)
            came_from[i][j] = "left" if best == left else "up" if best == up else "diagonal"
    i, j = len(source), len(target)
    reads = {}
    while (i, j) != (0, 0):
        move = came_from[i][j]
        i, j = i - (move != "left"), j - (move != "up")
        if move != "up":
            reads[j] = i if move == "diagonal" else None
    return [reads[j] if j < len(target) else j for j in range(length)]


def assert_published_but_for_pads_that_read_words(source, target):
    alignment = align_refine(source, target)
    published = published_refinement(
        source.ids[: source.end + 1], target.ids[: target.end + 1], len(target.ids)
    )
    differing = set()
    for column, row in enumerate(published):
        expected = torch.zeros(77, dtype=torch.float64)
        if row is not None:
            expected[row] = 1.0
        alike = torch.equal(alignment.mapping[:, column], expected)
        if not alike or alignment.own[column] != (row is None):
            differing.add(column)
    assert differing == set(range(target.end + 1, source.end + 1))


@pytest.mark.parametrize(
    ("source", "target"),
    [
        pytest.param("a cat", "a silver cat", id="one-word"),
        pytest.param("a cat", "watercolor painting of a cat", id="words-ahead"),
        pytest.param("a cat", "a cat, sitting on a mat", id="words-behind"),
        pytest.param("a cat ran", "a capybara and a cat ran by", id="words-of-several-tokens"),
        pytest.param("a cat ran", "a dog ran", id="a-swap"),
        pytest.param("", "a cat", id="from-empty"),
        pytest.param("a capybara ran", "a silver cat ran", id="longer-in-words-shorter-in-tokens"),
        pytest.param("a big silver cat", "a cat", id="words-removed"),
        pytest.param("a cat", "", id="to-empty"),
    ],
)
def test_refinement_is_the_published_one_unless_its_pads_read_words(encode, source, target):
    assert_published_but_for_pads_that_read_words(encode(source), encode(target))


@quick
@given(pairs())
def test_refinement_is_the_published_one_unless_its_pads_read_words_for_any(encode, prompts):
    assert_published_but_for_pads_that_read_words(*map(encode, prompts))


# Both
