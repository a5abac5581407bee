import numpy as np
import pytest
import torch

from next_ray.delta.sharding import merge_shards, module_cost, shard_modules
from next_ray.delta.window import DeltaWindow
from next_ray.errors import ExtrapolationError
from next_ray.types import LoraFactors
from tests.delta.trajectories import dense, wandering_adapters

SHAPES = {"l0.q": (12, 10), "l0.k": (4, 10), "l1.q": (12, 10)}


def best_rank_one(matrix: np.ndarray) -> np.ndarray:
    u, s, vt = np.linalg.svd(matrix)
    return s[0] * np.outer(u[:, 0], vt[0])


def matrix_of(triplet) -> np.ndarray:
    return triplet.sigma * np.outer(triplet.u.astype(float), triplet.v.astype(float))


@pytest.fixture
def trajectory():
    return wandering_adapters(np.random.default_rng(0), SHAPES, rank=3, count=7)


GPU = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")])


@pytest.mark.parametrize("device", [None, "cpu", GPU])
@pytest.mark.parametrize("horizon", [1, 2, 3])
def test_triplets_are_those_of_the_dense_deltas(trajectory, horizon, device):
    window = DeltaWindow(horizon, device=device)
    weights = {name: [np.zeros(shape)] + [dense(adapter[name]) for adapter in trajectory] for name, shape in SHAPES.items()}
    for index, adapter in enumerate(trajectory, start=1):
        found = window.observe(index, 10 * index, adapter)
        assert (found.index, found.step) == (index, 10 * index)
        for name, module in found.modules.items():
            w = weights[name]
            size = float(np.linalg.norm(w[index]))
            np.testing.assert_allclose(matrix_of(module.global_), best_rank_one(w[index]), atol=1e-6 * size)
            np.testing.assert_allclose(matrix_of(module.local), best_rank_one(w[index] - w[index - 1]), atol=1e-6 * size)
            if index <= horizon:
                assert module.target is None
            else:
                np.testing.assert_allclose(matrix_of(module.target), best_rank_one(w[index] - w[index - horizon]), atol=1e-6 * size)


@pytest.mark.parametrize("horizon", [1, 2, 3])
def test_neither_the_device_nor_the_portions_change_triplets_and_energies(trajectory, horizon, monkeypatch):
    whole, torched, portioned = DeltaWindow(horizon), DeltaWindow(horizon, device="cpu"), DeltaWindow(horizon)
    for index, adapter in enumerate(trajectory, start=1):
        expected, others = whole.observe(index, index, adapter), [torched.observe(index, index, adapter)]
        with monkeypatch.context() as patch:
            patch.setattr("next_ray.delta.window.GRAM_BATCH_BYTES", 1)
            others.append(portioned.observe(index, index, adapter))
        for found in others:
            assert list(found.modules) == list(expected.modules)
            for name, module in found.modules.items():
                known = expected.modules[name]
                assert module.energy == pytest.approx(known.energy, rel=1e-9)
                assert module.frobenius_energy == pytest.approx(known.frobenius_energy, rel=1e-9)
                for one, other in ((module.global_, known.global_), (module.local, known.local), (module.target, known.target)):
                    assert (one is None) == (other is None)
                    if one is not None and other is not None:
                        np.testing.assert_allclose(one.u, other.u, atol=1e-6)
                        np.testing.assert_allclose(one.v, other.v, atol=1e-6)


def test_signs_are_chained(trajectory):
    window, horizon = DeltaWindow(2), 2
    seen = {}
    for index, adapter in enumerate(trajectory, start=1):
        seen[index] = window.observe(index, index, adapter).modules
        for name, module in seen[index].items():
            references = [(module.local, module.global_)]
            references += [(module.global_, seen[index - 1][name].global_)] if index > 1 else []
            references += [(module.target, seen[index - horizon][name].global_)] if module.target else []
            for x, y in references:
                assert float(x.u @ y.u) + float(x.v @ y.v) >= 0


def test_same_index_again_gives_the_same_result_and_window_is_bounded(trajectory):
    window = DeltaWindow(2)
    results = {i: window.observe(i, i, adapter) for i, adapter in enumerate(trajectory, start=1)}
    assert window.observe(7, 7, trajectory[0]) is results[7]
    assert window.observe(5, 5, trajectory[4]) is results[5]
    assert sorted(window._factors) == [5, 6, 7]
    assert window._factors[5]["l0.q"] is trajectory[4]["l0.q"]
    with pytest.raises(ExtrapolationError, match="older than the window"):
        window.observe(4, 4, trajectory[3])


def test_gaps_and_foreign_checkpoints_are_refused(trajectory):
    window = DeltaWindow(2)
    with pytest.raises(ExtrapolationError, match="Hand over checkpoint 1 first"):
        window.observe(3, 3, trajectory[2])
    window.observe(1, 10, trajectory[0])
    with pytest.raises(ExtrapolationError, match="two trajectories"):
        window.observe(1, 11, trajectory[0])
    with pytest.raises(ExtrapolationError, match="lacks the modules"):
        window.observe(2, 20, {name: f for name, f in trajectory[1].items() if name != "l0.k"})
    broken = dict(trajectory[1])
    broken["l0.k"] = LoraFactors(a=np.full((3, 10), np.nan, np.float32), b=broken["l0.k"].b, scale=0.5)
    with pytest.raises(ExtrapolationError, match="NaN"):
        window.observe(2, 20, broken)
    broken["l0.k"] = LoraFactors(a=np.zeros((3, 11), np.float32), b=np.zeros((4, 3), np.float32), scale=0.5)
    with pytest.raises(ExtrapolationError, match="size changed"):
        window.observe(2, 20, broken)
    assert window.observe(2, 20, trajectory[1]).index == 2


def test_shards_together_are_the_whole(trajectory):
    plan = shard_modules({name: module_cost(o, i, 3) for name, (o, i) in SHAPES.items()}, 2)
    workers = [DeltaWindow(2, modules) for modules in plan]
    whole = DeltaWindow(2)
    for index, adapter in enumerate(trajectory, start=1):
        expected = whole.observe(index, index, adapter)
        merged = merge_shards([worker.observe(index, index, adapter) for worker in workers])
        assert list(merged.modules) == sorted(SHAPES)
        for name in SHAPES:
            np.testing.assert_allclose(matrix_of(merged.modules[name].local), matrix_of(expected.modules[name].local), atol=1e-9)
            assert merged.modules[name].energy == pytest.approx(expected.modules[name].energy)


def test_merge_refuses_what_does_not_belong_together(trajectory):
    window, other = DeltaWindow(2, ["l0.q"]), DeltaWindow(2, ["l0.k"])
    first, second = window.observe(1, 1, trajectory[0]), other.observe(1, 1, trajectory[0])
    with pytest.raises(ValueError, match="more than one shard"):
        merge_shards([first, first])
    with pytest.raises(ValueError, match="one checkpoint"):
        merge_shards([second, window.observe(2, 2, trajectory[1])])
