import numpy as np
import pytest

from next_ray.delta.factors import FactorPair
from next_ray.delta.history import FactorHistory
from next_ray.delta.window import DeltaWindow
from tests.delta.trajectories import dense, wandering_adapters

SHAPES = {"q": (24, 16), "down": (16, 40)}
STEPS = 6


@pytest.fixture
def adapters() -> list:
    return wandering_adapters(np.random.default_rng(0), SHAPES, rank=4, count=STEPS)


def history(adapters: list, name: str) -> FactorHistory:
    return FactorHistory([adapter[name] for adapter in adapters])


def product(pair: FactorPair) -> np.ndarray:
    return pair.left @ pair.right


def test_a_weighted_sum_equals_the_dense_one(adapters: list) -> None:
    weights = np.array([0.0, 1.5, 0.0, -2.0, 0.25, 1.0])
    expected = sum(w * dense(adapter["down"]) for w, adapter in zip(weights, adapters, strict=True))
    np.testing.assert_allclose(product(history(adapters, "down").combine(weights)), expected, atol=1e-15)
    assert history(adapters, "down").combine(np.zeros(STEPS)).left.shape == (16, 0)


def test_inner_products_and_row_norms_equal_the_dense_ones(adapters: list) -> None:
    deltas = [dense(adapter["q"]) for adapter in adapters]
    expected = [[np.sum(i * j) for j in deltas] for i in deltas]
    np.testing.assert_allclose(history(adapters, "q").gram(), expected, rtol=1e-12)
    np.testing.assert_allclose(history(adapters, "q").row_norms(3), np.linalg.norm(deltas[2], axis=1), rtol=1e-9)


def test_singular_values_of_any_pair_of_checkpoints(adapters: list) -> None:
    delta = dense(adapters[4]["q"]) - dense(adapters[1]["q"])
    expected = np.linalg.svd(delta, compute_uv=False)
    found = history(adapters, "q").singular_values(5, 2)
    np.testing.assert_allclose(found[: len(expected)], expected[: len(found)], atol=1e-8 * expected[0])
    assert history(adapters, "q").top(5, 2).sigma == pytest.approx(expected[0], rel=1e-9)


@pytest.mark.parametrize("horizon", [1, 2, 3])
def test_all_triplets_at_once_are_those_of_the_online_window(adapters: list, horizon: int) -> None:
    window = DeltaWindow(horizon)
    online = [window.observe(i, 10 * i, adapter) for i, adapter in enumerate(adapters, start=1)]
    for name in SHAPES:
        for one, other in zip(history(adapters, name).triplets(horizon), online, strict=True):
            reference = other.modules[name]
            for own, expected in ((one.global_, reference.global_), (one.local, reference.local), (one.target, reference.target)):
                assert (own is None) == (expected is None)
                if own is not None and expected is not None:
                    assert own.sigma == pytest.approx(expected.sigma, rel=1e-6)
                    np.testing.assert_allclose(own.u, expected.u, atol=1e-5)
                    np.testing.assert_allclose(own.v, expected.v, atol=1e-5)
            assert one.energy == pytest.approx(reference.energy, rel=1e-6)
