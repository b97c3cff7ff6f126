"""The tokenizer, for tests of words and alignments."""

import pytest

from nti.networks.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def encode():
    return Tokenizer().encode
