import numpy as np
import pytest

from next_ray.errors import ExtrapolationError
from next_ray.extrapolate.candidates import candidate_name, next_candidate, two_point, two_point_candidate
from next_ray.types import LoraFactors, Triplet
from tests.delta.trajectories import dense, random_factors


def unit(rng: np.random.Generator, size: int) -> np.ndarray:
    x = rng.normal(size=size)
    return (x / np.linalg.norm(x)).astype(np.float32)


def test_names():
    assert candidate_name("next", 1.5) == "next@1.5"
    assert candidate_name("two-point", 1.0) == "two-point@1"


@pytest.mark.parametrize("alpha", [0.5, 1.5, -1.0])
def test_next_candidate_adds_exactly_the_triplet_at_rank_r_plus_1(alpha):
    rng = np.random.default_rng(0)
    adapter = {"moved": random_factors(rng, 9, 7, 3, scale=0.25), "still": random_factors(rng, 6, 7, 3, scale=0.25)}
    triplet = Triplet(0.3, unit(rng, 9), unit(rng, 7))
    found = next_candidate(adapter, {"moved": triplet}, alpha)
    expected = dense(adapter["moved"]) + alpha * 0.3 * np.outer(triplet.u.astype(float), triplet.v.astype(float))
    np.testing.assert_allclose(dense(found["moved"]), expected, atol=1e-7)
    np.testing.assert_array_equal(dense(found["still"]), dense(adapter["still"]))
    assert {f.rank for f in found.values()} == {4}
    assert {f.scale for f in found.values()} == {0.25}
    assert all(f.a.dtype == np.float32 and f.b.dtype == np.float32 for f in found.values())


def test_next_candidate_refuses_triplets_of_another_model():
    rng = np.random.default_rng(1)
    adapter = {"m": random_factors(rng, 9, 7, 3)}
    with pytest.raises(ExtrapolationError, match="another model"):
        next_candidate(adapter, {"n": Triplet(1.0, unit(rng, 9), unit(rng, 7))}, 1.0)
    with pytest.raises(ExtrapolationError, match="does not fit"):
        next_candidate(adapter, {"m": Triplet(1.0, unit(rng, 7), unit(rng, 9))}, 1.0)


@pytest.mark.parametrize("a", [0.0, 1.0, 2.5])
def test_two_point_at_twice_the_rank_is_exact(a):
    rng = np.random.default_rng(2)
    base, start = {"m": random_factors(rng, 12, 11, 3, scale=0.5)}, {"m": random_factors(rng, 12, 11, 3, scale=2.0)}
    found = two_point(base, start, a, rank=6)
    expected = dense(base["m"]) + a * (dense(start["m"]) - dense(base["m"]))
    np.testing.assert_allclose(dense(found.adapter["m"]), expected, atol=1e-6 * np.abs(expected).max())
    assert found.truncation_error == 0.0
    assert found.adapter["m"].scale == 2.0


def test_two_point_truncates_like_the_dense_svd():
    rng = np.random.default_rng(3)
    base, start = {"m": random_factors(rng, 12, 11, 3)}, {"m": random_factors(rng, 12, 11, 3)}
    found = two_point(base, start, 2.0, rank=3, anchor=start)
    u, s, vt = np.linalg.svd(2 * dense(start["m"]) - dense(base["m"]))
    np.testing.assert_allclose(dense(found.adapter["m"]), (u[:, :3] * s[:3]) @ vt[:3], atol=1e-6 * s[0])
    assert found.truncation_error == pytest.approx(np.sqrt(np.sum(s[3:] ** 2) / np.sum(s**2)), rel=1e-6)


def test_alpha_counts_horizons_as_for_next():
    """W_c + alpha (W_c - W_{c-k}), by hand: 5 + 1.5 (5 - 3) = 8."""
    earlier = {"m": LoraFactors(np.array([[1.0]], np.float32), np.array([[3.0]], np.float32), 1.0)}
    current = {"m": LoraFactors(np.array([[1.0]], np.float32), np.array([[5.0]], np.float32), 1.0)}
    assert dense(two_point_candidate(current, earlier, 1.5, rank=1).adapter["m"])[0, 0] == pytest.approx(8.0)


def test_two_point_refuses_other_modules():
    rng = np.random.default_rng(4)
    x = random_factors(rng, 5, 5, 2)
    with pytest.raises(ExtrapolationError, match="same modules"):
        two_point({"m": x}, {"n": x}, 2.0, rank=2)
    with pytest.raises(ExtrapolationError, match="anchor"):
        two_point({"m": x}, {"m": x}, 2.0, rank=2, anchor={"n": x})
