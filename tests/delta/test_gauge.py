import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from next_ray.delta.gauge import align, canonical, flipped
from next_ray.types import Triplet


def triplet(rng: np.random.Generator, sigma: float = 1.0) -> Triplet:
    u, v = rng.normal(size=5), rng.normal(size=4)
    return Triplet(sigma, (u / np.linalg.norm(u)).astype(np.float32), (v / np.linalg.norm(v)).astype(np.float32))


def same(x: Triplet, y: Triplet) -> bool:
    return x.sigma == y.sigma and np.array_equal(x.u, y.u) and np.array_equal(x.v, y.v)


@given(st.integers(0, 2**32 - 1))
def test_result_is_blind_to_the_input_sign(seed):
    rng = np.random.default_rng(seed)
    x, reference = triplet(rng), triplet(rng)
    assert same(align(x, reference), align(flipped(x), reference))
    assert same(canonical(x), canonical(flipped(x)))
    assert same(align(x, None), canonical(x))


@given(st.integers(0, 2**32 - 1))
def test_u_and_v_flip_together_and_towards_the_reference(seed):
    rng = np.random.default_rng(seed)
    x, reference = triplet(rng), triplet(rng)
    found = align(x, reference)
    np.testing.assert_array_equal(np.outer(found.u, found.v), np.outer(x.u, x.v))
    assert found.u.astype(float) @ reference.u + found.v.astype(float) @ reference.v >= 0


def test_tie_and_zero_reference_fall_back_to_the_canonical_sign():
    x = Triplet(1.0, np.array([-1, 0], np.float32), np.array([1, 0], np.float32))
    orthogonal = Triplet(1.0, np.array([0, 1], np.float32), np.array([0, 1], np.float32))
    zero = Triplet(0.0, np.zeros(2, np.float32), np.zeros(2, np.float32))
    for reference in (orthogonal, zero):
        assert align(x, reference).u[0] == 1.0
        assert align(flipped(x), reference).u[0] == 1.0
    assert same(align(zero, x), zero)
