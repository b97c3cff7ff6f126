"""Prompts that hypothesis draws."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

__all__ = ["VOCABULARY", "pairs", "quick"]

# Token counts of some words: cat, dog, tiger, silver: 1; armadillo, unicycle: 2; capybara: 3.
VOCABULARY = ["a", "cat", "dog", "armadillo", "unicycle", "capybara", "it's", "2024", "café"]
MARKS = ["", "", ",", "!", "...", " 🐱", " -", " ( ;"]
quick = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@st.composite
def pairs(draw, same_words=False):
    """Draw two prompts of at most 74 tokens; with `same_words`, of equally many words."""

    def prompt(count):
        words = draw(st.lists(st.sampled_from(VOCABULARY), min_size=count, max_size=count))
        marks = draw(st.lists(st.sampled_from(MARKS), min_size=count + 1, max_size=count + 1))
        return " ".join([marks[0], *(w + m for w, m in zip(words, marks[1:], strict=True))])

    first = draw(st.integers(0, 12))
    return prompt(first), prompt(first if same_words else draw(st.integers(0, 12)))
