import pytest

from next_ray.errors import ConfigError
from next_ray.extrapolate.methods.regrounding import Leg, ReGrounding


def test_the_papers_setting_doubles_every_step() -> None:
    legs = list(ReGrounding().legs(600))
    assert legs == [Leg(0, 100, 100), Leg(200, 100, 100), Leg(400, 100, 100)]
    assert {leg.a for leg in legs} == {2.0}
    assert {leg.alpha for leg in legs} == {1.0}


def test_a_leg_is_a_line_through_its_two_models() -> None:
    """W(t) = 3 t: from 20 at start, 35 at the end of training, the jump lands on the line at 45."""
    leg = Leg(20, 15, 10)
    start, trained = 3 * 20, 3 * 35
    assert start + leg.a * (trained - start) == pytest.approx(3 * leg.end_step)
    assert trained + leg.alpha * (trained - start) == pytest.approx(3 * leg.end_step)


@pytest.mark.parametrize(
    ("target", "expected"),
    [(0, []), (30, [Leg(0, 30, 0)]), (50, [Leg(0, 50, 0)]), (60, [Leg(0, 50, 10)]), (90, [Leg(0, 50, 20), Leg(70, 20, 0)])],
)
def test_the_last_leg_is_cut_at_the_target(target: int, expected: list[Leg]) -> None:
    assert list(ReGrounding(50, 20).legs(target)) == expected


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="train_steps must be at least 1"):
        ReGrounding(0, 10)
    with pytest.raises(ConfigError, match="jump_steps"):
        ReGrounding(10, -1)
