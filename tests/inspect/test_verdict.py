import re

import pytest

from next_ray.extrapolate.methods.registry import make
from next_ray.inspect.analysis import inspect_trajectory
from next_ray.inspect.backtest import Backtest, MethodBacktest, Score
from next_ray.inspect.movement import movement, together
from next_ray.inspect.verdict import Outcome, verdict
from tests.inspect.trajectories import as_dense, converging, line, random_walk, still

LINEAR = ["no-op", "persistence", "two-point", "linear-fit", "expo", "wsm-uniform", "relex"]


def judged(weights, horizon=None):
    return inspect_trajectory(weights, [make(name) for name in LINEAR], horizon).verdict


@pytest.mark.parametrize("kind", ["factors", "dense"])
def test_a_line_is_worth_jumping(kind):
    weights = line() if kind == "factors" else as_dense(line())
    found = judged(weights)
    assert found.worth_it and (found.method, found.alpha, found.steps) == ("persistence", 1.0, 50)
    assert found.error == pytest.approx(0.0, abs=1e-5)
    assert "Worth jumping" in found.sentence and "50 training steps ahead" in found.sentence and "no-op 1.00" in found.sentence


def test_a_noisy_line_is_worth_jumping_by_the_method_that_averages_the_noise():
    found = judged(line(noise=2.0))
    assert found.worth_it and found.method in ("linear-fit", "relex")
    assert found.persistence is not None and found.error is not None and found.error < found.persistence - 0.02
    assert f"persistence {found.persistence:.2f}" in found.sentence


@pytest.mark.parametrize("seed", range(8))
def test_a_random_walk_is_not(seed):
    found = judged(random_walk(seed=seed))
    assert found.outcome is Outcome.UNPREDICTABLE and found.alpha is None and found.steps is None
    assert found.sentence.startswith("Not worth jumping") and re.search(
        r"straightness of the path 0\.\d\d \(line 1, random walk 0\.26\)", found.sentence
    )


def test_training_that_has_converged_is_not():
    found = judged(converging())
    assert found.outcome is Outcome.CONVERGED and "converged" in found.sentence


def test_training_that_slows_down_is_jumped_less_far():
    found = judged(converging(ratio=0.9))
    assert found.worth_it and found.alpha is not None and found.alpha < 1.0


def test_weights_that_never_moved_are_not():
    assert judged(still()).outcome is Outcome.UNMOVED


@pytest.mark.parametrize(("count", "horizon", "needed"), [(1, None, 3), (2, None, 3), (6, 4, 8)])
def test_too_short_trajectories_say_what_is_needed(count, horizon, needed):
    found = judged(line(count), horizon)
    assert found.outcome is Outcome.TOO_SHORT and f"{needed} are needed" in found.sentence


def score(origin, alpha, pooled):
    return Score(origin, alpha, pooled, pooled, {"m": pooled})


def decided(*methods):
    weights = random_walk(count=6)
    return verdict(weights, together([movement(m) for m in weights.modules.values()]), Backtest(1, (4, 5), methods))


def test_an_alpha_that_is_best_in_hindsight_decides_nothing():
    lucky = MethodBacktest("lucky", 1.0, (score(4, 1.0, 1.3), score(4, 2.0, 0.2), score(5, 1.0, 1.4), score(5, 2.0, 1.2)))
    assert lucky.best_alpha == 2.0 and lucky.error(2.0) < 0.9
    found = decided(lucky)
    assert found.outcome is Outcome.UNPREDICTABLE and found.error == pytest.approx(1.35)


def test_a_tuned_alpha_counts():
    shy = MethodBacktest("shy", 1.0, (score(4, 0.5, 0.6), score(4, 1.0, 0.95), score(5, 0.5, 0.7), score(5, 1.0, 0.95)))
    found = decided(shy)
    assert found.worth_it and found.alpha == 0.5 and found.error == pytest.approx(0.7)


def test_a_method_whose_alpha_is_no_time_is_not_recommended():
    found = decided(MethodBacktest("expo", None, tuple(score(origin, 0.5, 0.1) for origin in (4, 5))))
    assert found.outcome is Outcome.UNPREDICTABLE and "no method" in found.sentence


def test_one_origin_worse_than_staying_is_enough_to_refuse():
    found = decided(MethodBacktest("wild", 1.0, (score(4, 1.0, 0.1), score(5, 1.0, 1.1))))
    assert found.outcome is Outcome.UNPREDICTABLE and "at some origin" in found.sentence


def test_persistence_is_preferred_when_nothing_is_clearly_better():
    near = MethodBacktest("fancy", 1.0, (score(4, 1.0, 0.50), score(5, 1.0, 0.50)))
    plain = MethodBacktest("persistence", 1.0, (score(4, 1.0, 0.51), score(5, 1.0, 0.52)))
    clear = MethodBacktest("fancy", 1.0, (score(4, 1.0, 0.40), score(5, 1.0, 0.40)))
    assert decided(near, plain).method == "persistence"
    assert decided(clear, plain).method == "fancy"


def test_skipped_methods_leave_nothing_to_recommend():
    found = decided(MethodBacktest("next", 1.0, skipped="needs 7 checkpoints; 5 are left"))
    assert found.outcome is Outcome.UNPREDICTABLE and "no method" in found.sentence
