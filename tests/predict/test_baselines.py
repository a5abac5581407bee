import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from next_ray.delta.gauge import flipped
from next_ray.predict.baselines import linear, persistence, relative_error, triplet_distance
from next_ray.predict.trajectory import AlignedTrajectory
from next_ray.types import Triplet
from tests.predict.trajectories import randomly_flipped, rank_one_trajectory, top

SHAPES = {"a": (9, 7), "b": (5, 8)}


def matrix(triplet: Triplet) -> np.ndarray:
    return triplet.sigma * np.outer(triplet.u.astype(float), triplet.v.astype(float))


def aligned(triplets, horizon=3) -> AlignedTrajectory:
    trajectory = AlignedTrajectory(horizon)
    for checkpoint in triplets:
        trajectory.append(checkpoint)
    return trajectory


def test_linear_fit_is_numpy_least_squares_per_entry():
    triplets = rank_one_trajectory(SHAPES, count=7, horizon=3, seed=0, growth=1.3, turn=1.0)
    found = linear(aligned(triplets))
    for name in SHAPES:
        entries = np.stack([matrix(t.modules[name].global_).ravel() for t in triplets])
        slope = np.polyfit(np.arange(1, 8), entries, 1)[0].reshape(SHAPES[name])
        np.testing.assert_allclose(matrix(found[name]), matrix(top(3 * slope)), atol=1e-6)


def test_linear_fit_foretells_a_straight_line():
    triplets = rank_one_trajectory(SHAPES, count=9, horizon=3, seed=1)
    found = linear(aligned(randomly_flipped(triplets[:6], seed=0)))
    actual = {name: m.target for name, m in triplets[8].modules.items() if m.target}
    assert relative_error(found, actual) < 1e-5


def test_persistence_repeats_the_last_known_target():
    triplets = rank_one_trajectory(SHAPES, count=6, horizon=3, seed=2, growth=2.0)
    found = persistence(aligned(triplets))
    for name in SHAPES:
        target = triplets[-1].modules[name].target
        assert target is not None
        np.testing.assert_allclose(matrix(found[name]), matrix(target), atol=1e-6)


@given(st.integers(0, 2**32 - 1))
def test_distance_is_the_frobenius_norm_of_the_dense_difference(seed):
    rng = np.random.default_rng(seed)
    x, y = (Triplet(float(rng.uniform(0.1, 3)), *(top(rng.normal(size=(6, 5))).__dict__[k] for k in "uv")) for _ in range(2))
    expected = np.linalg.norm(matrix(x) - matrix(y))
    assert triplet_distance(x, y) == pytest.approx(expected, abs=1e-6)
    assert triplet_distance(flipped(x), y) == pytest.approx(expected, abs=1e-6)


def test_distance_of_near_twins_does_not_cancel():
    x = top(np.random.default_rng(0).normal(size=(6, 5)))
    assert triplet_distance(Triplet(x.sigma * (1 + 1e-9), x.u, x.v), x) == pytest.approx(1e-9 * x.sigma, rel=1e-3)


def test_relative_error_by_hand():
    """One module off by half its size, one not predicted, one that did not move: (0.5 + 1) / 2."""
    unit = np.array([1, 0], np.float32)
    actual = {"m": Triplet(2.0, unit, unit), "n": Triplet(1.0, unit, unit), "still": Triplet(0.0, np.zeros_like(unit), np.zeros_like(unit))}
    assert relative_error({"m": Triplet(1.0, unit, unit)}, actual) == pytest.approx(0.75)
