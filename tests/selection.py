"""Which tests a session runs, by `--cuda` and `--part`."""

from typing import TypeVar

import pytest
import torch

Item = TypeVar("Item")

NEEDS_CUDA = "needs CUDA"
"""The reason that a test gives to be skipped where there is no CUDA."""


def needs_cuda(item: pytest.Item) -> bool:
    """Whether a test is skipped where there is no CUDA."""
    return any(mark.kwargs.get("reason") == NEEDS_CUDA for mark in item.iter_markers("skipif"))


def part_of(items: list[Item], part: str) -> list[Item]:
    """Every n-th of some tests, from the i-th on, for `i/n`."""
    first, _, step = part.partition("/")
    if not (first.isdigit() and step.isdigit() and 1 <= int(first) <= int(step)):
        raise pytest.UsageError(f"--part: got {part!r}, expected I/N with I from 1 to N")
    return items[int(first) - 1 :: int(step)]


def chosen(items: list[pytest.Item], cuda: bool, part: str | None) -> list[pytest.Item]:
    """Raises UsageError if tests of CUDA would all be skipped, which looks like success."""
    if cuda:
        if not torch.cuda.is_available():
            raise pytest.UsageError("--cuda: there is no CUDA here")
        items = [item for item in items if needs_cuda(item)]
    return part_of(items, part) if part else items[:]
