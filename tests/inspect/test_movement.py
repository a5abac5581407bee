import numpy as np
import pytest

from next_ray.delta.history import FactorHistory
from next_ray.inspect.movement import Movement, movement, together, walk_straightness
from next_ray.types import LoraFactors
from tests.inspect.trajectories import dense_history, line, matrices, random_walk

RANKS = [(2, 0.5), (4, 2.0), (3, 1.0), (3, 0.25)]


@pytest.mark.parametrize("kind", ["factors", "dense"])
def test_inner_products_of_the_steps(kind):
    weights = random_walk(count=5)
    name = next(iter(weights.modules))
    deltas = matrices(weights, name)
    steps = np.diff(deltas, axis=0, prepend=0.0).reshape(5, -1)
    found = movement(weights.modules[name] if kind == "factors" else dense_history(deltas))
    np.testing.assert_allclose(found.gram, steps @ steps.T, rtol=1e-6, atol=1e-6)
    assert found.square_distance(4, 1) == pytest.approx(np.sum((deltas[3] - deltas[0]) ** 2))
    np.testing.assert_allclose(found.square_norms, np.sum(deltas**2, axis=(1, 2)), rtol=1e-6)
    assert found.turns[2] == pytest.approx(steps[2] @ steps[3] / np.linalg.norm(steps[2]) / np.linalg.norm(steps[3]))


def test_inner_products_of_adapters_whose_rank_scale_and_both_factors_change():
    rng = np.random.default_rng(1)
    factors = [LoraFactors(rng.normal(size=(r, 9)).astype(np.float32), rng.normal(size=(7, r)).astype(np.float32), s) for r, s in RANKS]
    deltas = np.stack([f.scale * (f.b.astype(np.float64) @ f.a.astype(np.float64)) for f in factors])
    steps = np.diff(deltas, axis=0, prepend=0.0).reshape(len(RANKS), -1)
    np.testing.assert_allclose(movement(FactorHistory(factors)).gram, steps @ steps.T, rtol=1e-10, atol=1e-10)


def test_tiny_steps_between_large_deltas_do_not_cancel():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 30)).astype(np.float32), rng.normal(size=(20, 2)).astype(np.float32)
    nudged = b.copy()
    nudged[3, 1] = np.nextafter(b[3, 1], np.float32(np.inf))
    size = float(nudged[3, 1]) - float(b[3, 1])
    found = movement(FactorHistory([LoraFactors(a, b, 1.0), LoraFactors(a, nudged, 1.0)]))
    assert found.lengths[1] == pytest.approx(size * np.linalg.norm(a[1].astype(np.float64)), rel=1e-12)


def test_a_line_is_straight_and_a_step_back_is_not():
    straight = movement(line().modules["model.layers.0.mlp.down_proj"])
    assert straight.straightness == pytest.approx(1.0, abs=1e-6)
    assert all(turn == pytest.approx(1.0, abs=1e-6) for turn in straight.turns)
    assert straight.recent_speed(5, range(10, 160, 10)) == pytest.approx(1.0, abs=1e-5)
    there_and_back = Movement(np.array([[4.0, -4.0], [-4.0, 4.0]]))
    assert there_and_back.straightness == 0.0
    assert there_and_back.turns == [-1.0]
    assert there_and_back.recent_speed(2, [1, 2]) == 0.0


def test_a_first_checkpoint_far_from_the_base_is_one_long_step_and_not_a_fast_one():
    # 30 units in 30 training steps, then three checkpoints 3 units and 3 training steps apart
    steps = [30, 33, 36, 39]
    along = np.array([30.0, 3.0, 3.0, 3.0])
    assert Movement(np.outer(along, along)).recent_speed(2, steps) == pytest.approx(1.0)
    # steps that are orthogonal and as long as the square root of their time
    walk = Movement(np.diag([30.0, 3.0, 3.0, 3.0]))
    assert walk.straightness == pytest.approx(walk_straightness(steps))
    assert walk_straightness([10, 20, 30, 40]) == pytest.approx(0.5)


def test_modules_add_up_to_one_vector():
    weights = random_walk(count=4)
    whole = np.concatenate([np.diff(matrices(weights, name), axis=0, prepend=0.0).reshape(4, -1) for name in weights.modules], axis=1)
    found = together([movement(module) for module in weights.modules.values()])
    np.testing.assert_allclose(found.gram, whole @ whole.T, rtol=1e-9, atol=1e-12)


def test_no_movement_has_no_numbers():
    found = Movement(np.zeros((3, 3)))
    assert (found.straightness, found.recent_speed(1, [1, 2, 3]), found.turns) == (None, None, [None, None])
