import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from next_ray.delta import factors as module_under_test
from next_ray.delta.factors import FactorPair, difference, from_base, spectra, spectrum
from next_ray.types import LoraFactors
from tests.delta.trajectories import dense, random_factors


def dense_svd(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All singular values and the best rank-1 matrix, by torch's dense SVD."""
    u, s, vh = torch.linalg.svd(torch.from_numpy(matrix), full_matrices=False)
    return s.numpy(), (s[0] * torch.outer(u[:, 0], vh[0])).numpy()


def rank_one(found) -> np.ndarray:
    return found.top.sigma * np.outer(found.top.u.astype(np.float64), found.top.v.astype(np.float64))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 8), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_difference_spectrum_is_the_dense_one(out_features, in_features, rank, other_rank, seed):
    rng = np.random.default_rng(seed)
    later = random_factors(rng, out_features, in_features, rank, scale=0.5)
    earlier = random_factors(rng, out_features, in_features, other_rank, scale=2.0)
    matrix = dense(later) - dense(earlier)
    values, best = dense_svd(matrix)
    pair = difference(later, earlier)
    np.testing.assert_allclose(pair.left @ pair.right, matrix, atol=1e-15)
    for found in (spectrum(pair), spectra({"m": pair})["m"]):
        count = min(len(values), len(found.singular_values))
        np.testing.assert_allclose(found.singular_values[:count], values[:count], atol=1e-7 * values[0])
        assert not np.any(found.singular_values[count:] > 1e-7 * values[0])
        assert found.top.sigma == pytest.approx(values[0], rel=1e-10)
        if len(values) < 2 or values[1] < 0.9 * values[0]:
            np.testing.assert_allclose(rank_one(found), best, atol=1e-6 * values[0])


def test_energies_are_those_of_the_dense_delta():
    rng = np.random.default_rng(0)
    factors = random_factors(rng, 50, 30, 6)
    values = np.linalg.svd(dense(factors), compute_uv=False)
    found = spectrum(from_base(factors))
    assert found.energy == pytest.approx(values[0] / values.sum(), rel=1e-10)
    assert found.frobenius_energy == pytest.approx(values[0] ** 2 / np.sum(dense(factors) ** 2), rel=1e-10)


def test_a_tiny_update_of_a_large_adapter_survives():
    """|L| is 1e-7 of |G|: subtracting float32 products would leave noise only."""
    rng = np.random.default_rng(1)
    earlier = random_factors(rng, 60, 40, 4, scale=1.0)
    later = LoraFactors(a=earlier.a, b=earlier.b.copy(), scale=1.0)
    later.b[7, 2] = np.nextafter(earlier.b[7, 2], np.float32(np.inf))
    step = float(later.b[7, 2]) - float(earlier.b[7, 2])
    row = earlier.a[2].astype(np.float64)
    found = spectra({"m": difference(later, earlier)})["m"]
    assert found.top.sigma == pytest.approx(step * np.linalg.norm(row), rel=1e-12)
    assert abs(found.top.u[7]) == pytest.approx(1.0, abs=1e-6)
    assert abs(found.top.v @ row) / np.linalg.norm(row) == pytest.approx(1.0, abs=1e-6)


def test_gram_hands_over_to_qr_where_blocks_cancel(monkeypatch):
    """left @ right almost cancels: float64 Gram matrices lose the result, the residual says so, QR keeps it."""
    rng = np.random.default_rng(2)
    left, right = rng.normal(size=(30, 3)), rng.normal(size=(3, 20))
    tiny = 1e-9 * np.outer(rng.normal(size=30), rng.normal(size=20))
    u, s, vt = np.linalg.svd(tiny)
    pair = FactorPair(np.hstack([left, left, s[0] * u[:, :1]]), np.vstack([right, -right, vt[:1]]))
    called = []
    monkeypatch.setattr(module_under_test, "spectrum", lambda p: called.append(p) or spectrum(p))
    found = spectra({"cancelling": pair, "plain": FactorPair(rng.normal(size=(30, 7)), rng.normal(size=(7, 20)))})
    assert len(called) == 1
    assert called[0] is pair
    assert found["cancelling"].top.sigma == pytest.approx(s[0], rel=1e-5)


def test_zero_delta_has_a_zero_triplet():
    zero = LoraFactors(a=np.ones((2, 5), np.float32), b=np.zeros((4, 2), np.float32), scale=1.0)
    for found in (spectrum(from_base(zero)), spectra({"m": difference(zero, zero)})["m"]):
        assert found.top.sigma == 0.0
        assert not found.top.u.any()
        assert not found.top.v.any()
        assert (found.energy, found.frobenius_energy) == (0.0, 0.0)


def test_batches_and_order_do_not_matter(monkeypatch):
    rng = np.random.default_rng(3)
    pairs = {f"m{i}": from_base(random_factors(rng, 8 + i % 2, 6, 3)) for i in range(9)}
    whole = spectra(pairs)
    monkeypatch.setattr(module_under_test, "GRAM_BATCH_BYTES", 1)
    single = spectra(dict(reversed(pairs.items())))
    assert list(whole) == list(pairs)
    for name in pairs:
        np.testing.assert_allclose(rank_one(whole[name]), rank_one(single[name]), atol=1e-9)
