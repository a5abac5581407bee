import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from next_ray.errors import ExtrapolationError
from next_ray.extrapolate.recompress import recompress
from next_ray.types import LoraFactors
from tests.delta.trajectories import dense, random_factors


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 12), st.integers(1, 12), st.booleans(), st.integers(0, 2**32 - 1))
def test_is_the_best_approximation_of_its_rank(out_features, in_features, given_rank, rank, anchored, seed):
    rng = np.random.default_rng(seed)
    adapter = {"m": random_factors(rng, out_features, in_features, given_rank, scale=1.5)}
    anchor = {"m": random_factors(rng, out_features, in_features, rank, scale=0.5)} if anchored else None
    found = recompress(adapter, rank, anchor)
    matrix = dense(adapter["m"])
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ vt[:rank]
    result = found.adapter["m"]
    assert (result.a.shape, result.b.shape) == ((rank, in_features), (out_features, rank))
    assert (result.a.dtype, result.b.dtype) == (np.float32, np.float32)
    assert result.scale == (0.5 if anchored else 1.5)
    assert np.linalg.norm(dense(result) - matrix) <= np.linalg.norm(best - matrix) + 1e-5 * np.linalg.norm(matrix)
    assert found.truncation_error == pytest.approx(np.sqrt(np.sum(s[rank:] ** 2) / np.sum(s**2)), abs=1e-9)


def test_truncation_error_is_over_all_modules():
    """Hand-made: sigma (3, 4) in one module and (12,) in the other; rank 1 drops the 3 of 3^2 + 4^2 + 12^2 = 169."""
    two = LoraFactors(a=np.eye(2, 3, dtype=np.float32), b=np.array([[3, 0], [0, 4]], np.float32), scale=1.0)
    one = LoraFactors(a=np.array([[1, 0, 0]], np.float32), b=np.array([[24], [0]], np.float32), scale=0.5)
    assert recompress({"x": two, "y": one}, 1).truncation_error == pytest.approx(3 / 13)
    assert recompress({"x": two, "y": one}, 2).truncation_error == 0.0


def test_without_anchor_the_split_is_balanced():
    rng = np.random.default_rng(0)
    result = recompress({"m": random_factors(rng, 9, 7, 5)}, 3).adapter["m"]
    np.testing.assert_allclose(result.a @ result.a.T, result.b.T @ result.b, atol=1e-8)


@pytest.mark.parametrize("untrained", [False, True])
def test_own_anchor_changes_nothing(untrained):
    """Also for B = 0, where the delta says nothing about A."""
    rng = np.random.default_rng(1)
    factors = random_factors(rng, 20, 30, 4)
    if untrained:
        factors = LoraFactors(a=factors.a, b=np.zeros_like(factors.b), scale=factors.scale)
    result = recompress({"m": factors}, 4, {"m": factors}).adapter["m"]
    np.testing.assert_allclose(result.a, factors.a, atol=2e-7)
    np.testing.assert_allclose(result.b, factors.b, atol=1e-8)


def test_anchor_gauge_is_the_nearest_a():
    """No A with the same row space is nearer to the anchor's: its rows are the anchor's, projected."""
    rng = np.random.default_rng(2)
    anchor = random_factors(rng, 25, 30, 4)
    moved = LoraFactors(a=anchor.a + np.float32(0.01) * rng.normal(size=anchor.a.shape).astype(np.float32), b=3 * anchor.b, scale=0.7)
    result = recompress({"m": moved}, 4, {"m": anchor}).adapter["m"]
    basis = np.linalg.qr(moved.a.T.astype(float))[0]
    np.testing.assert_allclose(result.a, anchor.a @ basis @ basis.T, atol=1e-6)
    np.testing.assert_allclose(dense(result), dense(moved), atol=1e-7)


def test_after_a_jump_a_keeps_its_size_where_balance_would_shrink_it():
    rng = np.random.default_rng(3)
    anchor = random_factors(rng, 40, 50, 8)
    step = 0.02 * np.outer(rng.normal(size=40), rng.normal(size=50) / 7)
    u, s, vt = np.linalg.svd(step)
    jumped = LoraFactors(
        a=np.vstack([anchor.a, vt[:1]]).astype(np.float32),
        b=np.column_stack([anchor.b, 2 * s[0] * u[:, 0]]).astype(np.float32),
        scale=anchor.scale,
    )
    found = recompress({"m": jumped}, 8, {"m": anchor})
    balanced = recompress({"m": jumped}, 8)
    values = np.linalg.svd(dense(jumped), compute_uv=False)
    np.testing.assert_allclose(dense(found.adapter["m"]), dense(balanced.adapter["m"]), atol=1e-6 * values[0])
    sizes = [np.linalg.norm(x) for x in (found.adapter["m"].a, balanced.adapter["m"].a, anchor.a)]
    assert 0.7 * sizes[2] < sizes[0] < 1.1 * sizes[2]
    assert sizes[1] < 0.5 * sizes[2]


def test_foreign_directions_do_not_blow_up_b():
    """The anchor's A is orthogonal to all that the delta needs: the floor keeps M, and so B, in bounds; the product is exact."""
    anchor = LoraFactors(a=np.eye(2, 6, dtype=np.float32), b=np.zeros((5, 2), np.float32), scale=1.0)
    rng = np.random.default_rng(4)
    foreign = LoraFactors(a=np.roll(np.eye(2, 6, dtype=np.float32), 3, axis=1), b=rng.normal(size=(5, 2)).astype(np.float32), scale=1.0)
    result = recompress({"m": foreign}, 2, {"m": anchor}).adapter["m"]
    np.testing.assert_allclose(dense(result), dense(foreign), atol=1e-6)
    assert np.linalg.cond(result.a) < 5
    assert np.linalg.norm(result.b) < 5 * np.linalg.norm(foreign.b)


def test_what_cannot_be_recompressed_is_refused():
    rng = np.random.default_rng(5)
    x = {"m": random_factors(rng, 6, 5, 3)}
    with pytest.raises(ExtrapolationError, match="same modules"):
        recompress(x, 3, {"other": x["m"]})
    with pytest.raises(ExtrapolationError, match="at its own rank"):
        recompress(x, 2, x)
    with pytest.raises(ExtrapolationError, match="scale 0"):
        recompress({"m": LoraFactors(x["m"].a, x["m"].b, 0.0)}, 3)
    with pytest.raises(ExtrapolationError, match="NaN"):
        recompress({"m": LoraFactors(x["m"].a * np.float32(np.nan), x["m"].b, 1.0)}, 3)
    with pytest.raises(ValueError, match="rank"):
        recompress(x, 0)
