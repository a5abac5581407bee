import numpy as np
import pytest

from next_ray.inspect.linearity import (
    EntryR2,
    num_train,
    r2_ahead,
    r2_within,
    random_walks,
    rank1_values,
    sample_entries,
    summary,
    weight_values,
)
from tests.inspect.trajectories import dense_history, matrices, random_walk

STEPS = [10, 20, 30, 50, 60, 70]


def by_hand(steps, values, train):
    """R^2 ahead of one entry with numpy's own line fit."""
    slope, intercept = np.polyfit(steps[:train], values[:train], 1)
    predicted = slope * np.array(steps[train:]) + intercept
    actual = np.array(values[train:])
    return 1 - np.sum((actual - predicted) ** 2) / np.sum((actual - actual.mean()) ** 2)


def test_ten_of_fifteen_are_fitted_as_in_the_paper():
    assert num_train(15) == 10
    assert [num_train(n) for n in (1, 2, 3, 4, 5, 6)] == [None, None, None, 2, 3, 4]


def test_ahead_equals_a_line_fit_by_hand_also_with_a_gap_in_the_steps():
    values = np.random.default_rng(0).normal(size=(6, 40)).cumsum(axis=0)
    found = r2_ahead(STEPS, values, 4).values
    np.testing.assert_allclose(found, [by_hand(STEPS, values[:, n], 4) for n in range(40)], rtol=1e-8)


def test_within_equals_the_squared_correlation_with_the_step():
    values = np.random.default_rng(1).normal(size=(6, 40)).cumsum(axis=0)
    found = r2_within(STEPS, values).values
    np.testing.assert_allclose(found, [np.corrcoef(STEPS, values[:, n])[0, 1] ** 2 for n in range(40)], rtol=1e-8)


def test_lines_have_1_and_constants_none():
    steps = np.array(STEPS, dtype=float)
    values = np.stack([3e-6 * steps + 1.0, np.full(6, 0.3), np.zeros(6)], axis=1)
    for found in (r2_ahead(STEPS, values, 4).values, r2_within(STEPS, values).values):
        assert found[0] == pytest.approx(1.0, abs=1e-6)
        assert np.isnan(found[1:]).all()


def test_shares_of_the_four_ranges():
    r2 = np.array([-3.0, -0.5, -0.1, 0.0, 0.4, 0.5, 0.8, 1.0, np.nan])
    spread = np.array([1.0, 2.0, 1.0, 4.0, 5.0, 2.0, 5.0, 20.0, 0.0])
    found = summary(EntryR2(np.nan_to_num((1.0 - r2) * spread), spread))
    assert found is not None
    assert found.shares == (1 / 8, 2 / 8, 2 / 8, 3 / 8)
    assert (found.strong, found.entries, found.constant) == (2 / 8, 8, 1)
    # SSE 4 + 3 + 1.1 + 4 + 3 + 1 + 1 + 0 of SST 40
    assert found.pooled == pytest.approx(1 - 17.1 / 40)
    assert summary(EntryR2(np.array([0.0]), np.array([0.0]))) is None


def test_entries_of_small_modules_are_all_and_of_large_ones_a_fixed_sample():
    small, large = sample_entries("m", (3, 4), limit=12), sample_entries("m", (300, 400), limit=50)
    assert small.exact and sorted(zip(small.rows.tolist(), small.columns.tolist(), strict=True)) == [
        (r, c) for r in range(3) for c in range(4)
    ]
    assert not large.exact and len(large.rows) == 50 and large.rows.max() < 300 and large.columns.max() < 400
    np.testing.assert_array_equal(large.rows, sample_entries("m", (300, 400), limit=50).rows)
    assert np.any(large.rows != sample_entries("n", (300, 400), limit=50).rows)


def test_values_are_those_of_the_dense_matrices():
    weights = random_walk(count=4)
    name = next(iter(weights.modules))
    history, deltas = weights.modules[name], matrices(weights, name)
    entries = sample_entries(name, history.shape)
    np.testing.assert_allclose(weight_values(history, entries), deltas.reshape(4, -1), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(weight_values(dense_history(deltas), entries), deltas.reshape(4, -1), rtol=1e-6)
    rank1 = []
    for delta in deltas:
        u, s, vt = np.linalg.svd(delta)
        rank1.append(s[0] * np.outer(u[:, 0], vt[0]).ravel())
    found = rank1_values([module.global_ for module in history.triplets(1)], entries)
    np.testing.assert_allclose(found, rank1, atol=1e-5 * np.abs(deltas).max())


def test_random_walks_look_linear_in_sample_and_are_not_ahead():
    ahead, within = random_walks(range(10, 160, 10), 10)
    assert ahead is not None and within is not None
    assert ahead.shares[0] > 0.6
    assert within.pooled > 0.3 and ahead.pooled < 0.0
