"""Dense deltas: the block Krylov triplet against LAPACK's SVD, its flags, and the history that streams."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from next_ray.delta.dense import DenseHistory
from next_ray.delta.dense_window import DenseWindow
from next_ray.delta.history import FactorHistory, ModuleHistory
from next_ray.delta.leading import leading_triplet
from next_ray.errors import ExtrapolationError
from next_ray.types import ModuleTriplets
from tests.delta.trajectories import dense, wandering_adapters


@dataclass
class Stored:
    """Matrices in memory, copied on every access as a reader would."""

    matrices: list[np.ndarray]
    loads: list[int] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.matrices[0].shape
        return rows, columns

    def load(self, index: int) -> np.ndarray:
        self.loads.append(index)
        return self.matrices[index].copy()


def orthonormal(rng: np.random.Generator, size: int, count: int) -> np.ndarray:
    return np.linalg.qr(rng.normal(size=(size, count)))[0]


def with_spectrum(values: np.ndarray, shape: tuple[int, int] = (90, 70)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A matrix with these singular values, and its left and right vectors."""
    rng = np.random.default_rng(0)
    u, v = orthonormal(rng, shape[0], len(values)), orthonormal(rng, shape[1], len(values))
    return (u * values) @ v.T, u, v


def dense_trajectory(shape: tuple[int, int], rank: int, count: int) -> tuple[DenseHistory, FactorHistory]:
    """The same trajectory as full float32 matrices over a base, and as factors."""
    factors = [adapter["m"] for adapter in wandering_adapters(np.random.default_rng(1), {"m": shape}, rank, count)]
    base = 0.1 * np.random.default_rng(2).normal(size=shape)
    matrices = [base.astype(np.float32), *((base + 100 * dense(f)).astype(np.float32) for f in factors)]
    return DenseHistory(Stored(matrices), count), FactorHistory(factors)


@pytest.fixture
def trajectory() -> DenseHistory:
    return dense_trajectory((30, 22), 4, 6)[0]


def deltas(history: DenseHistory) -> list[np.ndarray]:
    matrices = history.source.matrices  # pyright: ignore[reportAttributeAccessIssue]
    return [matrix.astype(np.float64) - matrices[0].astype(np.float64) for matrix in matrices[1:]]


@pytest.mark.parametrize("power", [0.3, 0.7, 1.5])
@pytest.mark.parametrize("tolerance", [1e-6, 1e-10])
def test_decaying_spectra(power: float, tolerance: float) -> None:
    matrix, u, v = with_spectrum(np.arange(1, 61) ** -power)
    found = leading_triplet(torch.from_numpy(matrix), tolerance)
    sign = np.sign(u[:, 0] @ found.triplet.u)
    assert found.triplet.sigma == pytest.approx(1.0, abs=tolerance)
    np.testing.assert_allclose(sign * found.triplet.u, u[:, 0], atol=1e-7 + tolerance / found.gap)
    np.testing.assert_allclose(sign * found.triplet.v, v[:, 0], atol=1e-7 + tolerance / found.gap)
    assert found.residual <= tolerance
    assert found.gap == pytest.approx(1 - 2**-power, abs=0.05)
    assert not found.degenerate


@pytest.mark.parametrize("values", [np.ones(60), np.r_[1.0, 1.0, np.full(50, 0.7)], np.r_[1.0, 1 - 1e-4, np.linspace(0.9, 0.1, 50)]])
def test_ties_are_flagged_and_still_a_singular_pair(values: np.ndarray) -> None:
    matrix, _, _ = with_spectrum(values)
    found = leading_triplet(torch.from_numpy(matrix))
    assert found.degenerate
    assert found.triplet.sigma == pytest.approx(1.0, abs=1e-6)
    forward = matrix @ found.triplet.v - found.triplet.sigma * found.triplet.u
    backward = matrix.T @ found.triplet.u - found.triplet.sigma * found.triplet.v
    assert max(np.linalg.norm(forward), np.linalg.norm(backward)) < 2e-6


def test_a_matrix_of_noise_is_flagged_and_right() -> None:
    matrix = np.random.default_rng(0).normal(size=(300, 250))
    found = leading_triplet(torch.from_numpy(matrix))
    assert found.triplet.sigma == pytest.approx(np.linalg.norm(matrix, 2), rel=1e-9)
    assert found.degenerate == (1 - np.divide(*np.linalg.svd(matrix, compute_uv=False)[1::-1]) < 1e-2)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 3), (3, 2), (5, 200)])
def test_thin_matrices(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(3).normal(size=shape)
    found = leading_triplet(torch.from_numpy(matrix))
    u, sigma, v_t = np.linalg.svd(matrix, full_matrices=False)
    assert found.triplet.sigma == pytest.approx(sigma[0], rel=1e-9)
    np.testing.assert_allclose(np.outer(found.triplet.u, found.triplet.v), np.outer(u[:, 0], v_t[0]), atol=1e-5)


def test_a_good_guess_saves_steps_and_a_bad_one_does_no_harm() -> None:
    matrix, u, v = with_spectrum(np.arange(1, 61) ** -0.3)
    cold = leading_triplet(torch.from_numpy(matrix))
    warm = leading_triplet(torch.from_numpy(matrix), start=(v[:, 0] + 1e-4 * v[:, 5]).astype(np.float32))
    orthogonal = leading_triplet(torch.from_numpy(matrix), start=v[:, 30].astype(np.float32))
    assert warm.steps < cold.steps
    for found in (warm, orthogonal):
        assert abs(found.triplet.u @ u[:, 0]) == pytest.approx(1.0, abs=1e-6)


def test_zero_damage_and_no_convergence() -> None:
    zero = leading_triplet(torch.zeros((4, 3), dtype=torch.float64))
    assert zero.triplet.sigma == 0.0
    assert not zero.triplet.u.any()
    assert not zero.degenerate
    with pytest.raises(ExtrapolationError, match="NaN"):
        leading_triplet(torch.full((4, 3), torch.nan, dtype=torch.float64))
    with pytest.raises(ExtrapolationError, match="after 2 steps the residual"):
        leading_triplet(torch.from_numpy(np.random.default_rng(0).normal(size=(80, 80))), max_steps=2)


def test_weighted_sums_inner_products_and_rows_are_the_dense_ones(trajectory: DenseHistory) -> None:
    own = deltas(trajectory)
    weights = np.array([0.0, 1.5, 0.0, -2.0, 0.25, 1.0])
    np.testing.assert_allclose(trajectory.combine(weights), sum(w * d for w, d in zip(weights, own, strict=True)), atol=1e-14)
    np.testing.assert_array_equal(trajectory.combine(np.array([0.0, 0.0, 1.0, 0.0, 0.0, 0.0])), own[2])
    np.testing.assert_allclose(trajectory.gram(), [[np.sum(i * j) for j in own] for i in own], rtol=1e-6)
    np.testing.assert_allclose(trajectory.row_norms(3), np.linalg.norm(own[2], axis=1), rtol=1e-6)
    np.testing.assert_allclose(trajectory.singular_values(5, 2), np.linalg.svd(own[4] - own[1], compute_uv=False), atol=1e-12)


def test_checkpoints_of_weight_zero_are_not_read(trajectory: DenseHistory) -> None:
    trajectory.combine(np.array([1.0, 0.0, 0.0, -1.0, 0.0, 0.0]))
    assert trajectory.source.loads == [0, 1, 4]  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match="as many weights"):
        trajectory.combine(np.ones(2))


@pytest.mark.parametrize("horizon", [1, 2, 5, 9])
def test_the_triplets_are_those_of_the_factors(horizon: int) -> None:
    """The same trajectory dense and as factors (deltas 100 times as large): same vectors, same signs, sigma times 100."""
    full, factors = dense_trajectory((40, 26), 4, 7)
    histories: tuple[ModuleHistory, ModuleHistory] = full, factors
    for one, other in zip(*(history.triplets(horizon) for history in histories), strict=True):
        for own, expected in ((one.global_, other.global_), (one.local, other.local), (one.target, other.target)):
            assert (own is None) == (expected is None)
            if own is not None and expected is not None:
                assert own.sigma == pytest.approx(100 * expected.sigma, rel=1e-5)
                np.testing.assert_allclose(own.u, expected.u, atol=1e-4)
                np.testing.assert_allclose(own.v, expected.v, atol=1e-4)
        assert one.frobenius_energy == pytest.approx(other.frobenius_energy, rel=1e-5)


def test_truncated_is_the_start(trajectory: DenseHistory) -> None:
    short = trajectory.truncated(3)
    assert short.num_checkpoints == 3
    np.testing.assert_allclose(short.gram(), trajectory.gram()[:3, :3], rtol=1e-6)


@pytest.mark.parametrize("work", ["top", "triplets", "combine", "gram", "row_norms"])
def test_at_most_four_matrices_are_held(work: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy's allocations at their highest, the returned matrix included; torch works on numpy's memory or on vectors."""
    monkeypatch.setattr("next_ray.delta.dense.CHUNK", 4096)
    shape, count = (800, 1000), 5
    rng = np.random.default_rng(0)
    step = 0.01 * np.outer(rng.normal(size=800), rng.normal(size=1000)).astype(np.float32)

    class Made:
        shape = (800, 1000)

        def load(self, index: int) -> np.ndarray:
            weights = np.float32(index) * step
            weights += np.float32(0.1)
            return weights

    history = DenseHistory(Made(), count)
    calls = {
        "top": lambda: history.top(5, 2),
        "triplets": lambda: history.triplets(2),
        "combine": lambda: history.combine(np.ones(count)),
        "gram": history.gram,
        "row_norms": lambda: history.row_norms(2),
    }
    tracemalloc.start()
    try:
        calls[work]()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 4.1 * 4 * shape[0] * shape[1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_gives_the_same() -> None:
    matrix, u, _ = with_spectrum(np.arange(1, 61) ** -0.7)
    found = leading_triplet(torch.from_numpy(matrix).cuda())
    assert abs(found.triplet.u @ u[:, 0]) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("horizon", [1, 3])
def test_a_window_gives_what_the_whole_trajectory_gives(trajectory: DenseHistory, horizon: int) -> None:
    reads: list[tuple[int, str]] = []

    def read(index: int, name: str) -> np.ndarray:
        reads.append((index, name))
        return trajectory.source.load(index)

    window = DenseWindow(horizon, {"m": trajectory.shape})
    for index, expected in enumerate(trajectory.triplets(horizon), start=1):
        reads.clear()
        found = window.observe(index, 10 * index, read)
        assert {i for i, _ in reads} == {i for i in (0, index, index - 1, index - horizon) if i >= 0}
        assert window.observe(index, 10 * index, read) is found
        assert (found.index, found.step) == (index, 10 * index)
        assert_same(found.modules["m"], expected)


def assert_same(one: ModuleTriplets, other: ModuleTriplets) -> None:
    pairs = [(one.global_, other.global_), (one.local, other.local)]
    assert (one.target is None) == (other.target is None)
    if one.target is not None and other.target is not None:
        pairs.append((one.target, other.target))
    for mine, theirs in pairs:
        assert mine.sigma == theirs.sigma
        np.testing.assert_array_equal(mine.u, theirs.u)
        np.testing.assert_array_equal(mine.v, theirs.v)


def test_a_window_refuses_gaps_other_models_and_damage(trajectory: DenseHistory) -> None:
    window = DenseWindow(1, {"m": trajectory.shape})
    good = trajectory.source.load
    with pytest.raises(ExtrapolationError, match="hand over checkpoint 1 first"):
        window.observe(2, 2, lambda i, _: good(i))
    with pytest.raises(ExtrapolationError, match="instead of"):
        window.observe(1, 1, lambda i, _: good(i)[1:])
    with pytest.raises(ExtrapolationError, match="NaN"):
        window.observe(1, 1, lambda i, _: good(i) * np.nan)
    with pytest.raises(ExtrapolationError, match=r"lacks m\.weight"):
        window.observe(1, 1, lambda _, name: {}[name])
    assert window.observe(1, 1, lambda i, _: good(i)).index == 1
