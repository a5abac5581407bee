"""All triplets of a trajectory at once: against dense float64 SVD, in the aligned gauge, where Gram matrices fail too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from next_ray.delta import trajectory_triplets as module_under_test
from next_ray.delta.cores import BLOCK
from next_ray.delta.history import FactorHistory
from next_ray.delta.trajectory_triplets import factor_triplets, trajectory_triplets
from next_ray.delta.window import DeltaWindow
from next_ray.errors import ExtrapolationError
from next_ray.types import LoraFactors, ModuleTriplets, Triplet
from tests.delta.trajectories import dense, random_factors, wandering_adapters

ACCURACY = 1e-6


def wandering(shape: tuple[int, int], rank: int, count: int, seed: int = 0) -> list[LoraFactors]:
    return [adapter["m"] for adapter in wandering_adapters(np.random.default_rng(seed), {"m": shape}, rank, count)]


def deltas(factors: Sequence[LoraFactors], i: int, horizon: int) -> dict[str, np.ndarray]:
    """G, L and T of checkpoint i (from 0) as dense matrices."""
    products = [np.zeros_like(dense(factors[0])), *(dense(f) for f in factors)]
    found = {"global_": products[i + 1], "local": products[i + 1] - products[i]}
    return found | ({"target": products[i + 1] - products[i + 1 - horizon]} if i >= horizon else {})


def assert_like_dense(found: Sequence[ModuleTriplets], factors: Sequence[LoraFactors], horizon: int) -> None:
    """sigma, u and v within `ACCURACY` of the dense SVD, and the signs chained as the gauge wants them."""
    assert len(found) == len(factors)
    for i, own in enumerate(found):
        expected = deltas(factors, i, horizon)
        assert (own.target is None) == ("target" not in expected)
        for kind, delta in expected.items():
            triplet: Triplet = getattr(own, kind)
            u, sigma, v_t = np.linalg.svd(delta, full_matrices=False)
            sign = np.sign(u[:, 0] @ triplet.u)
            assert triplet.sigma == pytest.approx(sigma[0], rel=ACCURACY)
            assert np.linalg.norm(sign * u[:, 0] - triplet.u) < ACCURACY
            assert np.linalg.norm(sign * v_t[0] - triplet.v) < ACCURACY
            assert triplet.u.dtype == triplet.v.dtype == np.float32
        values = np.linalg.svd(expected["global_"], compute_uv=False)
        assert own.energy == pytest.approx(values[0] / values.sum(), rel=ACCURACY)
        assert own.frobenius_energy == pytest.approx(values[0] ** 2 / np.sum(values**2), rel=ACCURACY)
        if i > 0:
            before = found[i - 1].global_
            assert own.global_.u @ before.u + own.global_.v @ before.v >= 0
            assert own.local.u @ own.global_.u + own.local.v @ own.global_.v >= 0
        if own.target is not None:
            start = found[i - horizon].global_
            assert own.target.u @ start.u + own.target.v @ start.v >= 0


@pytest.mark.parametrize("horizon", [1, 3])
@pytest.mark.parametrize(("shape", "rank"), [((60, 45), 8), ((20, 90), 16), ((1, 50), 4), ((50, 1), 4), ((12, 10), 16)])
def test_sigma_u_v_and_energies_are_those_of_dense_svd(shape: tuple[int, int], rank: int, horizon: int) -> None:
    factors = wandering(shape, rank, 6)
    assert_like_dense(factor_triplets(factors, horizon), factors, horizon)


def test_the_online_window_gives_the_same_in_the_same_signs() -> None:
    factors = wandering((40, 30), 6, 7)
    window = DeltaWindow(2)
    for i, (own, f) in enumerate(zip(factor_triplets(factors, 2), factors, strict=True), start=1):
        online = window.observe(i, i, {"m": f}).modules["m"]
        for one, other in ((own.global_, online.global_), (own.local, online.local), (own.target, online.target)):
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                np.testing.assert_allclose(one.u, other.u, atol=ACCURACY)
                np.testing.assert_allclose(one.v, other.v, atol=ACCURACY)


def test_ranks_and_scales_may_change_on_the_way() -> None:
    rng = np.random.default_rng(3)
    factors = [random_factors(rng, 30, 25, rank, scale) for rank, scale in ((4, 0.5), (8, 2.0), (2, 1.0), (8, 0.25), (6, 0.5))]
    assert_like_dense(factor_triplets(factors, 2), factors, 2)


def test_the_gauge_of_the_factors_does_not_matter() -> None:
    factors = wandering((30, 20), 4, 5)
    rng = np.random.default_rng(1)
    mixed = []
    for f in factors:
        q = np.linalg.qr(rng.normal(size=(4, 4)))[0]
        mixed.append(LoraFactors(a=(q @ f.a).astype(np.float32), b=(f.b @ q.T).astype(np.float32), scale=f.scale))
    for one, other in zip(factor_triplets(factors, 2), factor_triplets(mixed, 2), strict=True):
        np.testing.assert_allclose(one.global_.u, other.global_.u, atol=1e-5)
        np.testing.assert_allclose(one.local.v, other.local.v, atol=1e-3)


def test_a_longer_trajectory_begins_with_the_shorter() -> None:
    factors = wandering((30, 20), 4, 6)
    for one, other in zip(factor_triplets(factors[:4], 2), factor_triplets(factors, 2), strict=False):
        np.testing.assert_allclose(one.global_.u, other.global_.u, atol=1e-7)
        np.testing.assert_allclose(one.local.v, other.local.v, atol=1e-7)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_short_trajectories(count: int) -> None:
    factors = wandering((30, 20), 4, count)
    found = factor_triplets(factors, 5)
    assert_like_dense(found, factors, 5)
    assert found[0].local is found[0].global_


def test_zero_and_standing_deltas_are_zero() -> None:
    rng = np.random.default_rng(0)
    f = random_factors(rng, 20, 15, 4)
    start = LoraFactors(f.a, np.zeros_like(f.b), f.scale)
    found = factor_triplets([start, f, f, start], 2)
    assert [own.global_.sigma > 0 for own in found] == [False, True, True, False]
    assert [own.local.sigma > 0 for own in found] == [False, True, False, True]
    assert [own.target.sigma > 0 for own in found[2:] if own.target] == [True, True]
    assert found[2].local.u.any() == found[0].global_.v.any() == False  # noqa: E712
    assert found[0].energy == found[0].frobenius_energy == 0.0


@pytest.mark.parametrize("step", [1e-2, 1e-4, 1e-6])
def test_small_steps_of_large_factors_fall_back_and_stay_exact(step: float, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    exact = module_under_test._subtracted

    def counted(later: LoraFactors, earlier: LoraFactors) -> Triplet:
        calls.append(1)
        return exact(later, earlier)

    monkeypatch.setattr(module_under_test, "_subtracted", counted)
    rng = np.random.default_rng(5)
    base = random_factors(rng, 60, 40, 8)
    way = random_factors(rng, 60, 40, 8)
    factors = [LoraFactors(base.a, (base.b + np.float32(t * step) * way.b).astype(np.float32), 0.5) for t in range(1, 7)]
    assert_like_dense(factor_triplets(factors, 3), factors, 3)
    assert len(calls) == (8 if step < 1e-2 else 0)


def test_a_delta_of_low_rank_has_exact_energies() -> None:
    rng = np.random.default_rng(2)
    b = np.outer(rng.normal(size=30), rng.normal(size=6)).astype(np.float32)
    factors = [LoraFactors(rng.normal(size=(6, 20)).astype(np.float32), t * b, 1.0) for t in (1.0, 2.0)]
    for own in factor_triplets(factors, 1):
        assert own.energy == pytest.approx(1.0, abs=1e-6)
        assert own.frobenius_energy == pytest.approx(1.0, abs=1e-12)


def test_flat_spectra_converge_too() -> None:
    """All singular values nearly equal, more of them than the iteration's block."""
    rng = np.random.default_rng(4)
    rank = 2 * BLOCK
    left = np.linalg.qr(rng.normal(size=(60, 2 * rank)))[0]
    right = np.linalg.qr(rng.normal(size=(50, 2 * rank)))[0]
    sizes = 1.0 - 1e-3 * np.arange(rank)
    factors = [
        LoraFactors(right[:, part].T.astype(np.float32), (left[:, part] * sizes).astype(np.float32), 1.0)
        for part in (slice(0, rank), slice(rank, 2 * rank))
    ]
    for own in factor_triplets(factors, 1):
        for triplet in (own.global_, own.local):
            assert triplet.sigma == pytest.approx(1.0, abs=1e-6)
            assert np.linalg.norm(triplet.u) == pytest.approx(1.0, abs=1e-6)
    difference = dense(factors[1]) - dense(factors[0])
    own = factor_triplets(factors, 1)[1].local
    assert np.linalg.norm(difference @ own.v - own.sigma * own.u) < 1e-6


def test_damaged_and_foreign_factors_are_refused() -> None:
    factors = wandering((12, 10), 2, 3)
    bad = LoraFactors(factors[1].a, np.full_like(factors[1].b, np.nan), 0.5)
    with pytest.raises(ExtrapolationError, match="NaN"):
        factor_triplets([factors[0], bad], 1)
    with pytest.raises(ExtrapolationError, match="another model"):
        factor_triplets([factors[0], wandering((12, 11), 2, 1)[0]], 1)
    with pytest.raises(ValueError, match="horizon"):
        factor_triplets(factors, 0)


def test_checkpoints_are_read_once() -> None:
    factors = wandering((30, 20), 4, 6)

    class Counting(Sequence[LoraFactors]):
        reads = 0

        def __len__(self) -> int:
            return len(factors)

        def __getitem__(self, index):
            Counting.reads += 1
            return factors[index]

    factor_triplets(Counting(), 2)
    assert Counting.reads == len(factors)


@pytest.mark.parametrize("threads", [1, 2])
def test_many_modules_at_once(threads: int) -> None:
    modules = {
        name: FactorHistory(wandering(shape, 4, 5, seed)) for seed, (name, shape) in enumerate({"q": (20, 12), "up": (40, 12)}.items())
    }
    before = torch.get_num_threads()
    found = trajectory_triplets(modules, 2, threads=threads)
    assert torch.get_num_threads() == before
    assert list(found) == ["q", "up"]
    assert list(trajectory_triplets(modules, 2, names=["up"], threads=threads)) == ["up"]
    for name, history in modules.items():
        assert_like_dense(found[name], history.factors, 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_gives_the_same() -> None:
    factors = wandering((60, 45), 8, 6)
    assert_like_dense(factor_triplets(factors, 3, device="cuda"), factors, 3)
