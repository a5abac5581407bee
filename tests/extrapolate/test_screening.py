from itertools import pairwise

import pytest

from next_ray.extrapolate.screening import Round, num_evaluations, plan_rounds, survivors


def test_eight_candidates_are_halved_three_times_at_equal_cost():
    rounds = plan_rounds(8, 96, 1.0)
    assert rounds == [Round(8, 0, 4, 4), Round(4, 4, 12, 2), Round(2, 12, 28, 1)]
    assert {r.num_candidates * (r.stop - r.start) for r in rounds} == {32}


def test_the_cost_counts_the_rounds_and_the_test_with_its_baseline():
    assert num_evaluations(8, 96, 0.0) == 9 * 96
    assert num_evaluations(8, 96, 1.0) == 96 + 2 * (96 - 28)
    assert num_evaluations(1, 96, 1.0) == 2 * 96


@pytest.mark.parametrize("num", range(2, 41))
@pytest.mark.parametrize("budget", [0.25, 0.5, 1.0])
def test_rounds_follow_each_other_end_with_one_and_stay_in_the_budget(num, budget):
    rounds = plan_rounds(num, 512, budget)
    assert rounds[-1].kept == 1
    assert rounds[0].start == 0
    assert all(a.stop == b.start and a.kept == b.num_candidates for a, b in pairwise(rounds))
    assert sum(r.num_candidates * (r.stop - r.start) for r in rounds) <= budget * 512 + 2 * num
    assert 2 * rounds[-1].stop <= 512


def test_no_screening_without_a_choice_a_budget_or_prompts_to_spare():
    assert plan_rounds(1, 96, 1.0) == plan_rounds(8, 96, 0.0) == plan_rounds(8, 5, 1.0) == []


def test_the_better_half_stays_in_order_and_ties_go_to_the_first_named():
    assert survivors({"a": [0.0, 1.0], "b": [1.0, 1.0], "c": [0.5, 0.5], "d": [0.0, 0.0]}, 2) == ["a", "b"]
