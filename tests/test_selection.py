"""The options that select tests."""

from types import SimpleNamespace

import pytest
import torch

from selection import chosen, needs_cuda, part_of


def item(*marks: pytest.MarkDecorator) -> SimpleNamespace:
    def iter_markers(name: str) -> list[pytest.Mark]:
        return [each.mark for each in marks if each.name == name]

    return SimpleNamespace(iter_markers=iter_markers)


def test_what_needs_cuda_is_found_by_the_reason_that_it_gives() -> None:
    assert needs_cuda(item(pytest.mark.skipif(True, reason="needs CUDA")))
    assert not needs_cuda(item(pytest.mark.skipif(True, reason="needs oneDNN")))
    assert not needs_cuda(item())


def test_parts_are_all_of_the_tests_once() -> None:
    parts = [part_of(list(range(10)), f"{i}/3") for i in (1, 2, 3)]
    assert sorted(sum(parts, [])) == list(range(10))
    assert [len(part) for part in parts] == [4, 3, 3]


@pytest.mark.parametrize("part", ["0/3", "4/3", "1", "a/b", "-1/3"])
def test_no_such_part(part: str) -> None:
    with pytest.raises(pytest.UsageError, match=f"got '{part}', expected I/N"):
        part_of([1, 2, 3], part)


def test_tests_of_cuda_do_not_pass_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    of_cuda, other = item(pytest.mark.skipif(False, reason="needs CUDA")), item()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert chosen([other, of_cuda, of_cuda], True, "1/2") == [of_cuda]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(pytest.UsageError, match="--cuda: there is no CUDA here"):
        chosen([of_cuda], True, None)
    assert chosen([other, of_cuda], False, None) == [other, of_cuda]
