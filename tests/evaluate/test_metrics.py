from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from next_ray.evaluate.metrics import avg_at_k, bootstrap, evaluation, icer, pass_at_k


def test_golden():
    """Prompt one solves 1 of 4, prompt two 4 of 4: pass@2 = mean(1 - 3/6, 1)."""
    matrix = [[1, 0, 0, 0], [1, 1, 1, 1]]
    assert avg_at_k(matrix) == 0.625
    assert pass_at_k(matrix, 1) == pytest.approx(0.625)
    assert pass_at_k(matrix, 2) == pytest.approx(0.75)
    assert pass_at_k(matrix, 4) == 1.0


@given(st.lists(st.integers(0, 1), min_size=1, max_size=7), st.data())
def test_pass_at_k_is_the_mean_over_all_subsets(row, data):
    k = data.draw(st.integers(1, len(row)))
    expected = np.mean([any(chosen) for chosen in combinations(row, k)])
    assert pass_at_k([row], k) == pytest.approx(expected)


def test_partial_credit_does_not_pass():
    assert pass_at_k([[0.9, 0.5]], 2) == 0.0
    assert avg_at_k([[0.9, 0.5]]) == pytest.approx(0.7)


def test_interval_matches_the_normal_approximation():
    rng = np.random.default_rng(0)
    values = rng.random(400)
    found = bootstrap(values, seed=1)
    half = 1.96 * values.std() / np.sqrt(400)
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(2)
    hits = 0
    for seed in range(300):
        interval = bootstrap((rng.random(100) < 0.4).astype(float), seed)
        hits += interval.low <= 0.4 <= interval.high
    assert 0.90 <= hits / 300 <= 0.985


def test_blocks_do_not_change_the_number_of_draws(monkeypatch):
    monkeypatch.setattr("next_ray.evaluate.metrics.DRAWS_PER_BLOCK", 150)
    found = bootstrap(np.arange(100.0), seed=3)
    assert found.low < 49.5 < found.high


def test_seeded_and_degenerate():
    values = np.random.default_rng(4).random(50)
    assert bootstrap(values, 5) == bootstrap(values, 5)
    one = bootstrap(np.ones(10), 0)
    assert (one.mean, one.low, one.high) == (1.0, 1.0, 1.0)


def test_icer():
    assert icer(250, 0.05) == pytest.approx(50.0)
    assert icer(250, 0.0) is None
    assert icer(250, -0.1) is None


def test_evaluation_reports_what_was_measured():
    found = evaluation("final", np.array([[1.0, 0.0], [0.0, 0.0]]), 0.7, seed=0)
    assert (found.label, found.num_prompts, found.num_samples, found.temperature) == ("final", 2, 2, 0.7)
    assert found.avg_at_k.mean == 0.25
    assert found.pass_at_k.mean == 0.5
    assert found.correct == ((1.0, 0.0), (0.0, 0.0))


@pytest.mark.parametrize("matrix", [[], [[]], [[1.0], [1.0, 0.0]], [[float("nan")]]])
def test_malformed_matrices_are_refused(matrix):
    with pytest.raises(ValueError, match="prompt"):
        avg_at_k(matrix)


def test_k_out_of_range_is_refused():
    with pytest.raises(ValueError, match="pass@3"):
        pass_at_k([[1.0, 0.0]], 3)
