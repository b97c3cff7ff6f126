import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nti.config import SD_V1
from nti.sampling.schedule import Schedule, alpha_bars, ddim_inverse_step, ddim_step
from tolerances import assert_close


@pytest.mark.parametrize(
    ("timestep", "expected"),
    [(0, 0.999150), (1, 0.998296), (21, 0.980381), (481, 0.302296), (981, 0.0057755)],
)
def test_alpha_bar_is_the_published_one(timestep: int, expected: float) -> None:
    assert alpha_bars(SD_V1.schedule)[timestep].item() == pytest.approx(expected, abs=5e-7)


def test_fifty_steps_are_981_961_to_1() -> None:
    assert Schedule.create(SD_V1.schedule, 50).timesteps == tuple(range(981, 0, -20))


def test_the_last_step_arrives_at_alpha_bar_0_not_at_1() -> None:
    schedule = Schedule.create(SD_V1.schedule, 50)
    assert schedule.alpha_bar_next[-1] == alpha_bars(SD_V1.schedule)[0]
    assert torch.equal(schedule.alpha_bar_next[:-1], schedule.alpha_bar[1:])


@pytest.mark.parametrize("steps", [0, -3, 1000, 2000])
def test_a_number_of_steps_that_leaves_the_trained_timesteps_is_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"got {steps}, expected 1 to 999"):
        Schedule.create(SD_V1.schedule, steps)


@given(st.integers(1, 999))
def test_any_number_of_steps_stays_on_trained_timesteps(steps: int) -> None:
    schedule = Schedule.create(SD_V1.schedule, steps)
    assert schedule.steps == steps
    assert schedule.timesteps[-1] == 1 and schedule.timesteps[0] <= 999


@given(st.integers(1, 200), st.data())
def test_the_inverse_step_undoes_the_step(steps: int, data: st.DataObject) -> None:
    schedule = Schedule.create(SD_V1.schedule, steps)
    step = schedule.coefficients(data.draw(st.integers(0, steps - 1)))
    latent, eps = torch.randn(2, 1, 4, 8, 8, dtype=torch.float64)
    assert_close(ddim_inverse_step(ddim_step(latent, eps, step), eps, step), latent)


def test_the_step_is_ddim_written_out() -> None:
    schedule = Schedule.create(SD_V1.schedule, 50)
    latent, eps = torch.randn(2, 1, 4, 8, 8, dtype=torch.float64)
    a, b = schedule.alpha_bar[7], schedule.alpha_bar[8]
    predicted = (latent - (1 - a).sqrt() * eps) / a.sqrt()
    expected = b.sqrt() * predicted + (1 - b).sqrt() * eps
    assert_close(ddim_step(latent, eps, schedule.coefficients(7)), expected)


@pytest.mark.parametrize(
    ("steps", "strength", "first"), [(50, 1, 0), (50, 0.8, 10), (50, 0.02, 49), (3, 0.5, 2)]
)
def test_a_strength_is_the_share_of_the_steps_that_are_left(
    steps: int, strength: float, first: int
) -> None:
    assert Schedule.create(SD_V1.schedule, steps).first_step(strength) == first


@pytest.mark.parametrize("strength", [0, 0.019, 1.01, -1, None, True, float("nan"), "1"])
def test_a_strength_that_leaves_too_few_steps_or_is_none_is_an_error(strength: object) -> None:
    with pytest.raises(ValueError, match="strength: got"):
        Schedule.create(SD_V1.schedule, 50).first_step(strength, fewest=1)
