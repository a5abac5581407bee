import numpy as np
import pytest

from next_ray.delta.history import FactorHistory
from next_ray.inspect import energy as module
from next_ray.inspect.energy import energies, energy, random_dense, random_factors
from tests.delta.trajectories import dense
from tests.delta.trajectories import random_factors as lora
from tests.inspect.trajectories import dense_history


def test_the_four_measures_of_a_known_spectrum():
    found = energy(np.array([4.0, 2.0, 2.0]))
    assert found.nuclear == pytest.approx(0.5)
    assert found.frobenius == pytest.approx(16 / 24)
    assert found.stable_rank == pytest.approx(24 / 16)
    assert found.effective_rank == pytest.approx(np.exp(1.5 * np.log(2)))  # entropy of (1/2, 1/4, 1/4)
    assert (found.rank, found.floor) == (3, pytest.approx(1 / 3))


def test_equal_singular_values_are_the_floor_and_one_direction_is_the_ceiling():
    flat, single = energy(np.ones(8)), energy(np.array([3.0, 0.0, 0.0, 0.0]))
    assert flat.nuclear == pytest.approx(flat.floor) and flat.frobenius == pytest.approx(flat.floor)
    assert flat.effective_rank == pytest.approx(8) and flat.stable_rank == pytest.approx(8)
    assert single.nuclear == single.frobenius == single.stable_rank == single.effective_rank == 1.0


def test_a_zero_delta_has_none():
    found = energy(np.zeros(4))
    assert (found.nuclear, found.frobenius, found.effective_rank, found.stable_rank) == (None, None, None, None)


def test_of_factors_equals_dense_svd_also_when_the_rank_is_larger_than_the_matrix():
    rng = np.random.default_rng(0)
    for shape, rank in [((20, 11), 4), ((5, 7), 6)]:
        factors = lora(rng, *shape, rank)
        (found,) = energies(FactorHistory([factors]), [0.0])
        values = np.linalg.svd(dense(factors), compute_uv=False)[:rank]
        shares = values / values.sum()
        assert found.rank == min(rank, *shape)
        assert found.nuclear == pytest.approx(values[0] / values.sum(), rel=1e-6)
        assert found.frobenius == pytest.approx(values[0] ** 2 / np.sum(dense(factors) ** 2), rel=1e-6)
        assert found.effective_rank == pytest.approx(np.exp(-np.sum(shares * np.log(shares))), rel=1e-6)


def test_large_dense_modules_give_the_frobenius_share_alone_unless_all_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "SPECTRUM_LIMIT", 4)
    deltas = np.random.default_rng(1).normal(size=(2, 9, 8))
    history, values = dense_history(deltas), np.linalg.svd(deltas[1], compute_uv=False)
    shares = [triplets.frobenius_energy for triplets in history.triplets(1)]
    found, full = energies(history, shares)[1], energies(history, shares, full_spectrum=True)[1]
    assert (found.nuclear, found.effective_rank, found.rank) == (None, None, 8)
    assert found.frobenius == pytest.approx(values[0] ** 2 / np.sum(deltas[1] ** 2))
    assert full.nuclear == pytest.approx(values[0] / values.sum())


@pytest.mark.parametrize(("shape", "rank"), [((60, 40), 8), ((300, 30), 16), ((40, 60), 1)])
def test_random_factors_as_drawn_and_decomposed_densely(shape, rank):
    rng = np.random.default_rng(2)
    draws = [
        np.linalg.svd(rng.normal(size=(shape[0], rank)) @ rng.normal(size=(rank, shape[1])), compute_uv=False)[:rank] for _ in range(200)
    ]
    found = random_factors(shape, rank)
    assert found.nuclear == pytest.approx(np.mean([d[0] / d.sum() for d in draws]), rel=0.04)
    assert found.frobenius == pytest.approx(np.mean([d[0] ** 2 / np.sum(d**2) for d in draws]), rel=0.05)
    assert found.effective_rank == pytest.approx(np.mean([np.exp(-np.sum(d / d.sum() * np.log(d / d.sum()))) for d in draws]), rel=0.02)


@pytest.mark.parametrize("shape", [(400, 300), (250, 600), (300, 300)])
def test_a_random_matrix_as_drawn_and_decomposed(shape):
    values = np.linalg.svd(np.random.default_rng(3).normal(size=shape), compute_uv=False)
    found = random_dense(shape)
    assert found.nuclear == pytest.approx(values[0] / values.sum(), rel=0.03)
    assert found.frobenius == pytest.approx(values[0] ** 2 / np.sum(values**2), rel=0.06)
    assert found.effective_rank == pytest.approx(energy(values).effective_rank, rel=0.02)
    assert found.frobenius is not None and found.stable_rank == pytest.approx(1 / found.frobenius)
