"""A few of the cases of fuzz.py, every time; and that it can find something."""

import contextlib
from pathlib import Path
from random import Random

import pytest

from fuzz import attempt, outcome
from mutations import mutate_bytes, mutate_json
from readers import READERS

CASES = 2000 // len(READERS) + 1
"""So that all readers together have 2,000."""


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused(name: str, tmp_path: Path) -> None:
    found = {seed: what for seed, what in attempt(name, 0, CASES, tmp_path)}
    wrong = {seed: what for seed, what in found.items() if what not in ("read", "refused")}
    assert len(found) == CASES and not wrong
    assert "refused" in found.values()


def test_what_is_no_documented_error_is_found() -> None:
    def fail() -> None:
        raise KeyError("x")

    assert outcome(fail, (ValueError,)) == "KeyError: 'x'"
    assert outcome(fail, (KeyError,)) == "refused"
    assert "does not name the file" in outcome(fail, (KeyError,), Path("/there/x"))
    assert outcome(lambda: None, ()) == "read"


def test_what_does_not_end_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> None:
        while True:
            with contextlib.suppress(Exception):
                [*range(1000)]

    monkeypatch.setattr("fuzz.SECONDS", 0.2)
    assert outcome(never, (ValueError,)) == "no end after 0 s"


def test_damage_is_the_same_every_time_and_leaves_what_it_is_given() -> None:
    value = {"a": [1, 2, {"b": "c"}], "d": 0.5}
    made = [mutate_json(value, Random(seed)) for seed in range(50)]
    assert repr(made) == repr([mutate_json(value, Random(seed)) for seed in range(50)])
    assert value == {"a": [1, 2, {"b": "c"}], "d": 0.5}
    assert len({repr(each) for each in made}) > 30
    assert mutate_bytes(b"abc", Random(1)) == mutate_bytes(b"abc", Random(1))
