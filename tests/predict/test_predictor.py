import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from next_ray.config import PredictorSection
from next_ray.errors import ExtrapolationError
from next_ray.predict import predictor as module_under_test
from next_ray.predict.baselines import relative_error
from next_ray.predict.predictor import TrajectoryPredictor
from next_ray.types import BacktestScore, CheckpointTriplets, ModuleTriplets, Triplet
from tests.predict.trajectories import randomly_flipped, rank_one_trajectory

SHAPES = {"l0.q": (12, 10), "l0.k": (4, 10), "l1.q": (12, 10), "l1.k": (4, 10)}
QUICK = PredictorSection(hidden=16, fit_steps=60, refine_steps=20)


def run(triplets, cfg=QUICK, horizon=3, seed=0, abstain=True, **options) -> TrajectoryPredictor:
    predictor = TrajectoryPredictor(cfg, horizon, seed, abstain, **options)
    for checkpoint in triplets:
        predictor.observe(checkpoint)
    return predictor


def targets(checkpoint: CheckpointTriplets) -> dict[str, Triplet]:
    return {name: m.target for name, m in checkpoint.modules.items() if m.target is not None}


def still(module: ModuleTriplets) -> ModuleTriplets:
    """The same module, never trained."""

    def zero(triplet: Triplet) -> Triplet:
        return Triplet(0.0, 0 * triplet.u, 0 * triplet.v)

    return replace(module, global_=zero(module.global_), local=zero(module.local), target=zero(module.target) if module.target else None)


def identical(x: dict[str, Triplet], y: dict[str, Triplet]) -> bool:
    return x.keys() == y.keys() and all(
        x[n].sigma == y[n].sigma and np.array_equal(x[n].u, y[n].u) and np.array_equal(x[n].v, y[n].v) for n in x
    )


@pytest.mark.parametrize("num_coordinates", [None, 128, 8])
def test_a_steady_trajectory_is_foretold(num_coordinates):
    """W_t = t * u v^T: T_c = k u v^T. Entries as released, entries with span, and a random frame all find it."""
    triplets = rank_one_trajectory(SHAPES, count=9, horizon=3, seed=0)
    cfg = PredictorSection(hidden=32, fit_steps=500, refine_steps=100)
    predictor = run(triplets[:6], cfg, num_coordinates=num_coordinates)
    actual = targets(triplets[8])
    assert relative_error(predictor.predict(), actual) < 0.1


def test_a_bending_trajectory_is_foretold_better_than_by_the_line():
    triplets = rank_one_trajectory(SHAPES, count=12, horizon=3, seed=1, growth=0.5, turn=0.8)
    cfg = PredictorSection(hidden=32, fit_steps=400, refine_steps=100)
    predictor = run(triplets, cfg)
    assert len(predictor.backtest) == 12 - 2 * 3 - 1
    assert np.median([s.next_ for s in predictor.backtest]) < np.median([s.linear for s in predictor.backtest])


def test_prediction_is_a_triplet():
    predictor = run(rank_one_trajectory(SHAPES, count=6, horizon=3, seed=2, turn=1.0))
    found = predictor.predict()
    assert set(found) == set(SHAPES)
    for name, triplet in found.items():
        assert (triplet.u.shape, triplet.v.shape) == ((SHAPES[name][0],), (SHAPES[name][1],))
        assert triplet.u.dtype == triplet.v.dtype == np.float32
        assert np.linalg.norm(triplet.u) == pytest.approx(1, abs=1e-6)
        assert np.linalg.norm(triplet.v) == pytest.approx(1, abs=1e-6)
        assert triplet.sigma > 0


@pytest.mark.parametrize("flip_seed", [0, 1, 2])
def test_input_signs_change_nothing(flip_seed):
    triplets = rank_one_trajectory(SHAPES, count=9, horizon=3, seed=3, growth=0.8, turn=1.0)
    plain, flipped = run(triplets), run(randomly_flipped(triplets, flip_seed))
    assert identical(plain.predict(), flipped.predict())
    assert plain.backtest == flipped.backtest


def test_deterministic_and_blind_to_global_random_state_threads_and_module_order():
    triplets = rank_one_trajectory(SHAPES, count=8, horizon=3, seed=4, turn=1.0)
    first = run(triplets)
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    torch.set_num_threads(2)
    try:
        second = run([CheckpointTriplets(t.index, t.step, dict(sorted(t.modules.items(), reverse=True))) for t in triplets])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
        torch.random.set_rng_state(before)
    assert identical(first.predict(), second.predict())
    assert first.backtest == second.backtest
    assert not identical(first.predict(), run(triplets, seed=1).predict())


def test_prediction_scales_with_the_trajectory():
    """sigma is a ratio: a thousand times larger weights give a thousand times larger delta in the same direction."""
    triplets = rank_one_trajectory(SHAPES, count=6, horizon=3, seed=5, growth=1.2)

    def scaled(t: Triplet) -> Triplet:
        return replace(t, sigma=1000 * t.sigma)

    larger = [
        replace(
            c,
            modules={
                n: replace(m, global_=scaled(m.global_), local=scaled(m.local), target=scaled(m.target) if m.target else None)
                for n, m in c.modules.items()
            },
        )
        for c in triplets
    ]
    one, two = run(triplets).predict(), run(larger).predict()
    for name in SHAPES:
        assert two[name].sigma == pytest.approx(1000 * one[name].sigma, rel=1e-4)
        np.testing.assert_array_equal(one[name].u, two[name].u)


def test_backtest_uses_only_what_was_known():
    """The forecast scored at 2k + 2 is the one a predictor makes that never sees anything after k + 2."""
    horizon = 2
    triplets = rank_one_trajectory(SHAPES, count=8, horizon=horizon, seed=6, growth=1.5, turn=1.0)
    past = run(triplets[: horizon + 2], horizon=horizon).predict()
    predictor = TrajectoryPredictor(QUICK, horizon, 0, abstain=True)
    scores = [predictor.observe(t) for t in triplets]
    assert [s.index if s else None for s in scores] == [None] * 5 + [4, 5, 6]
    actual, persisted = targets(triplets[5]), targets(triplets[3])
    first = scores[5]
    assert first is not None
    assert first.next_ == pytest.approx(relative_error(past, actual), rel=1e-9)
    assert first.persistence == pytest.approx(relative_error(persisted, actual), rel=1e-6)
    assert predictor.backtest == tuple(scores[5:])


def test_only_trained_modules_are_touched():
    triplets = rank_one_trajectory(SHAPES, count=6, horizon=3, seed=7)
    frozen = [replace(t, modules={**t.modules, "l1.q": still(t.modules["l1.q"])}) for t in triplets]
    assert set(run(frozen).predict()) == set(SHAPES) - {"l1.q"}


def test_nothing_trained_and_too_early_are_errors():
    triplets = rank_one_trajectory(SHAPES, count=6, horizon=3, seed=8)
    with pytest.raises(ExtrapolationError, match="needs checkpoint 5"):
        run(triplets[:4]).predict()
    motionless = [replace(t, modules={name: still(m) for name, m in t.modules.items()}) for t in triplets]
    with pytest.raises(ExtrapolationError, match="not zero"):
        run(motionless).predict()


def test_repeats_change_nothing_and_gaps_are_refused():
    triplets = rank_one_trajectory(SHAPES, count=9, horizon=3, seed=9)
    predictor = run(triplets[:8])
    before, score = predictor.predict(), predictor.backtest[-1]
    assert predictor.observe(triplets[7]) == score
    assert predictor.observe(triplets[1]) is None
    assert identical(before, predictor.predict())
    with pytest.raises(ExtrapolationError, match="replay"):
        predictor.observe(replace(triplets[8], index=10))
    with pytest.raises(ExtrapolationError, match="other modules"):
        predictor.observe(replace(triplets[8], modules={"l0.q": triplets[8].modules["l0.q"]}))
    with pytest.raises(ExtrapolationError, match="lacks the target"):
        predictor.observe(replace(triplets[8], modules={n: replace(m, target=None) for n, m in triplets[8].modules.items()}))
    predictor.observe(triplets[8])


def test_fits_once_and_then_refines(monkeypatch):
    steps = []
    for name in ("VectorModel", "SigmaModel"):
        original = getattr(module_under_test, name).fit
        monkeypatch.setattr(
            getattr(module_under_test, name), "fit", lambda self, t, s, original=original: steps.append(s) or original(self, t, s)
        )
    run(rank_one_trajectory(SHAPES, count=7, horizon=3, seed=10))
    assert steps == [60, 60, 20, 20, 20, 20]


@pytest.mark.parametrize(
    ("scores", "withdrawn"),
    [
        ([], False),
        ([(0.5, 0.4, 0.4)], True),
        ([(0.5, 0.4, 0.6)], False),
        ([(0.4, 0.4, 0.4)], False),
        ([(0.1, 0.4, 0.4), (0.9, 0.5, 0.5), (0.8, 0.6, 0.6)], True),
        ([(0.1, 0.4, 0.4), (0.2, 0.5, 0.5), (0.8, 0.6, 0.6)], False),
    ],
)
def test_abstains_when_it_loses_to_both(scores, withdrawn):
    predictor = TrajectoryPredictor(QUICK, 3, 0, abstain=True)
    predictor._scores = {i: BacktestScore(i, *s) for i, s in enumerate(scores)}
    assert (predictor.abstention is not None) == withdrawn
    if not scores:
        assert "checkpoint 8" in predictor.evidence
    stubborn = TrajectoryPredictor(QUICK, 3, 0, abstain=False)
    stubborn._scores = predictor._scores
    assert stubborn.abstention is None
