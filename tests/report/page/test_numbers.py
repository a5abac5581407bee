"""Rows in, numbers out: what the curves are made of, and what is said of runs side by side."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from next_ray.inspect.plane import plane
from next_ray.report.page.axes import Scale, around, ticks
from next_ray.report.page.charts import smoothed
from next_ray.report.page.compare import differences, paired, reached, reference, verdict
from next_ray.report.page.numbers import elapsed, evaluated, parted, seconds_by_phase
from tests.report.page.runs import a_run


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0.31, 0.78, [0.4, 0.5, 0.6, 0.7]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (3, 3, [3]),
        (0, 4e-4, [0, 1e-4, 2e-4, 3e-4, 4e-4]),
    ],
)
def test_ticks_are_round_numbers_within_the_range(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_a_range_holds_every_value_and_has_a_width() -> None:
    assert around([1.0, 2.0]) == pytest.approx((0.94, 2.06))
    assert around([1.0, 2.0], zero=True)[0] == 0.0
    low, high = around([5.0, float("nan")])
    assert low < 5.0 < high
    assert around([]) == pytest.approx((-0.06, 1.06))
    scale = Scale(0, 10, 100, 0)
    assert (scale(0), scale(5), scale(10)) == (100, 50, 0)


def test_smoothing_is_the_mean_of_what_came_before() -> None:
    assert smoothed([1, 2, 3, 6], 2) == [1, 1.5, 2.5, 4.5]
    assert smoothed([], 3) == []


def test_time_is_brought_together_and_nothing_is_lost() -> None:
    run = a_run()
    phases = seconds_by_phase(run)
    assert phases["rollout"] == pytest.approx(10.0) and phases["update"] == pytest.approx(5.5)
    assert phases["gate"] == pytest.approx(3.0) and phases["other"] == pytest.approx(1.0)
    assert sum(phases.values()) == pytest.approx(10 * 2.0 + 3.5)
    assert seconds_by_phase(a_run(ended=False)) == pytest.approx(phases)
    times = elapsed(run)
    assert (times[4], times[5]) == pytest.approx((8.0, 13.5))  # the attempt after step 4 is in the next one's time


def test_evaluations_are_in_order_and_those_of_the_end_are_marked() -> None:
    points = evaluated(a_run())
    assert [(point.step, point.label, point.final) for point in points] == [
        (0, "base", True), (3, "step 3", False), (6, "step 6", False), (9, "step 9", False), (10, "final", True),
    ]  # fmt: skip
    assert points[1].avg["mean"] == 0.25
    assert (parted("two-point@1.5"), parted("odd"), parted("a@b")) == (("two-point", 1.5), ("odd", None), ("a@b", None))


def test_a_better_a_worse_and_an_equal_end_are_told_apart() -> None:
    plain = a_run("plain", 2, extrapolates=False)
    assert reference([a_run(), plain]) == 1
    better = verdict([a_run("jumped", 3), plain])
    assert better[0].startswith("A ended better than B on the same test prompts: +25.0 points [+25.0, +25.0], p = ")
    assert "A took 24 s of critical path, B 20 s (118 % of it), for 10 steps each" in better[1]
    assert verdict([a_run("jumped", 1), plain])[0].startswith("A ended worse than B")
    assert verdict([a_run("jumped", 2), plain])[0].startswith("At the end A and B cannot be told apart")
    assert "single runs" in better[-1]


def test_a_run_that_did_not_jump_is_said_to_differ_by_chance() -> None:
    lines = " ".join(verdict([a_run("tried", 3, accepted=None), a_run("plain", 2, extrapolates=False)]))
    assert "No jump of A stood" in lines
    assert "No jump" not in " ".join(verdict([a_run("jumped", 3), a_run("plain", 2, extrapolates=False)]))


def test_the_way_there_is_compared_at_the_same_accuracy() -> None:
    assert [reached(a_run(), share) for share in (0.25, 0.5, 0.9)][2] is None
    first = reached(a_run(), 0.5)
    assert first is not None and (first.step, first.seconds) == (6, pytest.approx(6 * 2.0 + 3.5))
    lines = verdict([a_run("jumped", 3), a_run("plain", 3, extrapolates=False)])
    assert "90 % of B's final accuracy was first measured at step 9 (18 s) in B and at step 9 (21 s) in A." in lines


def test_what_makes_runs_incomparable_is_said() -> None:
    run, plain = a_run("jumped", 3), a_run("plain", 2, extrapolates=False)
    assert "different base models" in verdict([run, replace(plain, fingerprint="another")])[0]
    assert verdict([run, a_run("plain", ended=False, extrapolates=False)])[0].startswith("B has no final evaluation yet")
    other_prompts = replace(plain, scores={**(plain.scores or {}), "prompts": ["x"] * 20})
    assert paired(run, other_prompts) is None
    assert "not known to be the same, and their 95 % intervals do not overlap" in verdict([run, other_prompts])[0]
    seed = replace(plain, settings={**plain.settings, "seed": 2})
    assert differences([run, seed]) == {"extrapolation.enabled": [True, False], "seed": [1, 2]}
    assert any("Besides extrapolation they differ in seed" in line for line in verdict([run, seed]))
    assert any("Not every run kept its configuration" in line for line in verdict([run, replace(plain, settings={})]))
    assert any("different devices" in line for line in verdict([run, replace(plain, device="gpu")]))


def test_a_plane_keeps_the_distances_of_what_lies_in_it() -> None:
    points = np.array([[3.0, 0.0], [3.0, 4.0], [6.0, 8.0]])  # the base is the origin
    found = plane(["a", "b", "c"], points @ points.T)
    assert found is not None and found.explained == pytest.approx(1.0)
    places = np.array([found.base, *found.places])
    true = np.array([[0.0, 0.0], *points])
    for i in range(4):
        np.testing.assert_allclose(np.linalg.norm(places - places[i], axis=1), np.linalg.norm(true - true[i], axis=1), atol=1e-9)
    assert found.base[0] < found.places[-1][0]
    assert plane(["a"], np.zeros((1, 1))) is None
