import pytest
import torch

from nti.editing.alignment import align_refine, align_replace
from nti.editing.control_schedule import ControlSchedule, cross_windows, equalizer, self_windows
from nti.networks.tokenizer import TokenizedPrompt, Tokenizer

T = 50


@pytest.fixture(scope="module")
def source() -> TokenizedPrompt:
    return Tokenizer().encode("a cat on a mat")


@pytest.fixture(scope="module")
def target() -> TokenizedPrompt:
    return Tokenizer().encode("a big cat on a mat")


BIG, CAT = 2, 3


@pytest.mark.parametrize(
    ("window", "first", "last"),
    [(0.8, 0, 40), (1.0, 0, 50), (0.0, 0, 0), ((0.2, 0.6), 10, 30), (1, 0, 50), ((0, 1), 0, 50)],
)
def test_cross_windows_count_steps_plus_one(
    target: TokenizedPrompt, window: float | tuple[float, float], first: int, last: int
) -> None:
    active = cross_windows([window], [target], T)
    expected = torch.zeros(T, 1, 77, dtype=torch.float64)
    expected[first:last] = 1.0
    assert torch.equal(active, expected)


def test_a_words_window_overrides_the_default(target: TokenizedPrompt) -> None:
    active = cross_windows([{"default_": 0.4, "big": (0.5, 1.0)}], [target], T)[:, 0]
    assert active[:, CAT].nonzero().flatten().tolist() == list(range(20))
    assert active[:, BIG].nonzero().flatten().tolist() == list(range(25, 50))


def test_without_default_the_other_words_have_the_whole_time(target: TokenizedPrompt) -> None:
    active = cross_windows([{"big": 0.2}], [target], T)[:, 0]
    assert active[:, CAT].all() and active[:, BIG].sum() == 10


def test_settings_are_not_changed(target: TokenizedPrompt) -> None:
    window = {"default_": 0.4, "big": 0.2}
    cross_windows([window], [target], T)
    assert window == {"default_": 0.4, "big": 0.2}


def test_self_windows_count_steps() -> None:
    assert self_windows([0.5, (0.1, 0.3)], T) == ((0, 25), (5, 15))


def test_every_occurrence_of_a_word_is_weighted() -> None:
    twice = Tokenizer().encode("a cat and a cat")
    assert equalizer([{"cat": 3.0}], [twice])[0].eq(3.0).nonzero().flatten().tolist() == [2, 5]


def test_the_fold_follows_its_formula(source: TokenizedPrompt, target: TokenizedPrompt) -> None:
    alignment = align_refine(source, target)
    a = cross_windows([{"default_": 0.5, "cat": 0.1}], [target], T)
    c = equalizer([{"big": 2.0}], [target])
    schedule = ControlSchedule.create([alignment], a, c, ((0, 25),))
    for step in (0, 10, 40):
        weight = (c * a[step])[0]
        expected = alignment.mapping @ torch.diag(weight)
        assert torch.equal(schedule.source_mix[step, 0], expected)
        expected = weight * alignment.own + 1.0 - a[step, 0]
        assert torch.equal(schedule.own_mix[step, 0], expected)
    assert schedule.own_mix[0, 0, BIG] == 2.0 and schedule.own_mix[40, 0, BIG] == 1.0


def test_the_source_is_needed_while_a_window_is_open(source: TokenizedPrompt) -> None:
    def needed(window: object, inject: tuple[int, int]) -> list[int]:
        active = cross_windows([window], [source], T)
        c = equalizer([None], [source])
        schedule = ControlSchedule.create([align_replace(source, source)], active, c, (inject,))
        return [i for i in range(T) if schedule.needs_source[i]]

    assert needed(0.4, (0, 0)) == list(range(20))
    assert needed(0.4, (0, 30)) == list(range(30))
    assert needed((0.5, 0.6), (0, 5)) == [*range(5), *range(25, 30)]


def test_self_rows_point_to_the_source_inside_the_window_only(source: TokenizedPrompt) -> None:
    active = cross_windows([0.5] * 2, [source] * 2, T)
    schedule = ControlSchedule.create(
        [align_replace(source, source)] * 2, active, torch.ones(2, 77), ((0, 25), (5, 35))
    )
    # Rows of a replayed batch: two unconditional edits, the source, two conditional edits.
    assert schedule.control(3, 5, None).self_rows.tolist() == [0, 1, 2, 2, 4]
    assert schedule.control(8, 5, None).self_rows.tolist() == [0, 1, 2, 2, 2]
    assert schedule.control(30, 5, None).self_rows.tolist() == [0, 1, 2, 3, 2]
    assert schedule.control(40, 5, None).self_rows.tolist() == [0, 1, 2, 3, 4]
    assert schedule.control(3, 5, None).fold.source_rows.tolist() == [2, 2]
