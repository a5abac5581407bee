import re
from itertools import permutations

import pytest

from next_ray.delta.trajectory import from_adapters
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


def test_weights_that_never_moved_are_not():
    assert judged(still()).outcome is Outcome.UNMOVED


@pytest.mark.parametrize(("count", "horizon", "needed"), [(1, None, 3), (2, None, 3), (6, 4, 8)])
def test_too_short_trajectories_say_what_is_needed(count, horizon, needed):
    found = judged(line(count), horizon)
    assert found.outcome is Outcome.TOO_SHORT and f"{needed} are needed" in found.sentence


@pytest.mark.parametrize(
    ("count", "horizon", "said"),
    [
        (1, None, "1 checkpoint is too few to hide 1 and foretell it; 3 are needed."),
        (2, None, "2 checkpoints are too few to hide 1 and foretell it; 3 are needed."),
        (3, 2, "3 checkpoints are too few to hide 2 and foretell them; 4 are needed (or a horizon of 1)."),
        (6, 4, "6 checkpoints are too few to hide 4 and foretell them; 8 are needed (or a horizon of at most 3)."),
    ],
)
def test_only_a_horizon_that_would_do_is_advised(count, horizon, said):
    assert judged(line(count), horizon).sentence == f"Cannot tell: {said}"
    if "or a horizon" in said:
        assert judged(line(count), int(said[-3])).outcome is not Outcome.TOO_SHORT


def from_checkpoint(first, weights):
    """The same without the earlier checkpoints."""
    adapters = [{name: m.factors[i] for name, m in weights.modules.items()} for i in range(first - 1, weights.num_checkpoints)]
    return from_adapters(weights.steps[first - 1 :], adapters)


def test_a_segment_that_begins_far_from_the_base_is_judged_by_its_own_steps():
    # 90 training steps to the first checkpoint, then 10 each, all on one line
    found = judged(from_checkpoint(9, line(15)), 3)
    assert found.worth_it and found.error == pytest.approx(0.0, abs=1e-5) and found.steps == 30
    assert judged(from_checkpoint(9, line(14)), 3).sentence == (
        "Cannot tell: 6 checkpoints are too few to hide 3 and foretell them; 7 are needed (or a horizon of at most 2)."
    )


def score(origin, alpha, pooled):
    return Score(origin, alpha, pooled, pooled, {"m": pooled})


def shown(name: str, *rows: tuple[int, dict[float, float]], forecast: float | None = 1.0) -> MethodBacktest:
    """A method from rows of (origin, {alpha: error})."""
    return MethodBacktest(name, forecast, tuple(score(o, alpha, error) for o, errors in rows for alpha, error in errors.items()))


def decided(*methods, horizon=1):
    weights = random_walk(count=6)
    origins = sorted({score.origin for method in methods for score in method.scores})
    return verdict(weights, together([movement(m) for m in weights.modules.values()]), Backtest(horizon, tuple(origins), methods))


def test_an_alpha_that_is_best_in_hindsight_decides_nothing():
    lucky = shown("lucky", (4, {1.0: 1.3, 2.0: 0.2}), (5, {1.0: 1.4, 2.0: 1.2}))
    assert lucky.best_alpha == 2.0 and lucky.error(2.0) < 0.9
    found = decided(lucky)
    assert found.outcome is Outcome.UNPREDICTABLE and found.error == pytest.approx(1.35)


def test_a_claimed_error_goes_with_the_claimed_alpha():
    better_in_hindsight = shown("m", (4, {0.5: 0.55, 1.0: 0.5}), (5, {0.5: 0.45, 1.0: 0.5}), (6, {0.5: 0.48, 1.0: 0.5}))
    assert better_in_hindsight.best_alpha == 0.5
    found = decided(better_in_hindsight)
    assert (found.alpha, found.error, found.alpha_from, found.origins) == (1.0, 0.5, "claimed", 3)
    assert "at alpha 1 as it claims" in found.sentence


def test_a_tuned_error_goes_with_the_alpha_that_tuning_would_choose_now():
    drifting = shown(
        "m",
        (3, {0.5: 0.6, 0.75: 0.7, 1.0: 0.95}),
        (4, {0.5: 0.7, 0.75: 0.5, 1.0: 0.95}),
        (5, {0.5: 0.7, 0.75: 0.5, 1.0: 0.95}),
    )
    found = decided(drifting)
    # at origin 4 tuning takes 0.5 (error 0.7), at origin 5 0.75 (0.6 against 0.65 in the median, error 0.5), now 0.75
    assert (found.alpha, found.alpha_from, found.origins) == (0.75, "tuned", 2)
    assert found.error == pytest.approx(0.6) and found.worth_it
    assert "at alpha 0.75 as tuned" in found.sentence and "alpha chosen on earlier origins" in found.sentence


def test_a_tuned_alpha_that_did_not_hold_over_all_origins_is_not_taken():
    # tuning on origin 2 did well at origin 5, but over all that is known now staying put (alpha 0) is best
    rows = zip((2, 3, 4, 5), (0.1, 5.0, 5.0, 0.5), strict=True)
    unsteady = shown("m", *((origin, {0.0: 1.0, 0.5: error, 1.0: 1.5}) for origin, error in rows))
    assert unsteady.tuned_error(3) == 0.5 and unsteady.best_alpha == 0.0
    assert decided(unsteady, horizon=3).outcome is Outcome.UNPREDICTABLE


def test_tuning_is_no_way_around_an_origin_where_the_claim_failed():
    # tuning is judged at origin 5 alone, where the claim was better still
    rows = zip((2, 3, 4, 5), (1.1, 0.8, 0.7, 0.6), (0.9, 0.8, 0.7, 0.7), strict=True)
    found = decided(shown("m", *((origin, {0.75: tuned, 1.0: claimed}) for origin, claimed, tuned in rows)), horizon=3)
    assert found.outcome is Outcome.UNPREDICTABLE and found.alpha_from == "claimed" and "from checkpoint 2 (1.10):" in found.sentence


def test_a_tuned_alpha_that_lost_to_staying_put_at_some_origin_is_not_taken():
    rows = [(3, {0.5: 0.6, 1.0: 1.3}), (4, {0.5: 0.6, 1.0: 1.2}), (5, {0.5: 0.6, 1.0: 1.2})]
    assert decided(shown("m", *rows)).alpha == 0.5
    assert decided(shown("m", (2, {0.5: 1.1, 1.0: 0.5}), *rows)).outcome is Outcome.UNPREDICTABLE


def test_the_steps_ahead_are_one_horizon_whatever_alpha():
    weights, tuned = converging(ratio=0.9), judged(converging(ratio=0.9))
    assert tuned.alpha is not None and tuned.alpha < 1.0 and tuned.alpha_from == "tuned"
    assert tuned.steps == weights.steps[-1] - weights.steps[-6] == 50
    assert "about 50 training steps ahead" in tuned.sentence


def test_a_single_origin_is_hedged_in_words_and_counted():
    shy = shown("shy", (4, {0.5: 0.6, 1.0: 0.95}), (5, {0.5: 0.7, 1.0: 0.95}))
    found = decided(shy)
    assert found.worth_it and (found.alpha, found.error, found.origins) == (0.5, pytest.approx(0.7), 1)
    assert found.sentence.startswith("One origin only, so a hint and no more: worth jumping: shy")
    refused = decided(shown("m", (5, {1.0: 1.2})))
    assert refused.sentence.startswith("One origin only, so a hint and no more: not worth jumping:") and refused.origins == 1


def test_a_method_whose_alpha_is_no_time_is_not_recommended():
    found = decided(shown("expo", (4, {0.5: 0.1}), (5, {0.5: 0.1}), forecast=None))
    assert found.outcome is Outcome.UNPREDICTABLE and "no method" in found.sentence


def test_one_origin_worse_than_staying_is_enough_to_refuse_and_is_named():
    found = decided(shown("wild", (4, {1.0: 0.1}), (5, {1.0: 1.1})))
    assert found.outcome is Outcome.UNPREDICTABLE and "no nearer than staying put from checkpoint 5 (1.10):" in found.sentence


def test_persistence_is_preferred_when_nothing_is_clearly_better():
    near = shown("fancy", (4, {1.0: 0.50}), (5, {1.0: 0.50}))
    plain = shown("persistence", (4, {1.0: 0.51}), (5, {1.0: 0.52}))
    clear = shown("fancy", (4, {1.0: 0.40}), (5, {1.0: 0.40}))
    assert decided(near, plain).method == "persistence"
    assert decided(clear, plain).method == "fancy"


def test_a_tuned_method_does_not_beat_a_persistence_that_was_not_tuned():
    # tuning helps both alike: 0.8 as claimed, 0.5 tuned
    rows = [(o, {0.5: 0.5, 1.0: 0.8}) for o in (3, 4, 5)]
    for methods in permutations([shown("linear-fit", *rows), shown("relex", *rows), shown("persistence", *rows)]):
        found = decided(*methods)
        assert (found.method, found.alpha, found.alpha_from, found.persistence) == ("persistence", 0.5, "tuned", 0.5)


def test_tuning_has_to_beat_the_claim_over_the_same_origins():
    # the early origins are hard for every alpha; where tuning was judged, the claim is as good
    found = decided(shown("m", (3, {0.5: 0.8, 1.0: 0.85}), (4, {0.5: 0.41, 1.0: 0.4}), (5, {0.5: 0.4, 1.0: 0.41})))
    assert (found.alpha_from, found.alpha, found.origins) == ("claimed", 1.0, 3)


def test_methods_are_compared_over_the_origins_that_they_share_with_persistence():
    plain = shown("persistence", (3, {1.0: 0.2}), (4, {1.0: 0.8}), (5, {1.0: 0.8}))
    late = shown("next", (4, {1.0: 0.5}), (5, {1.0: 0.5}))
    assert decided(plain, late).method == "next"


def test_no_order_of_the_methods_changes_the_verdict():
    rows = [(3, {0.5: 0.6, 1.0: 0.7}), (4, {0.5: 0.5, 1.0: 0.7}), (5, {0.5: 0.5, 1.0: 0.6})]
    equal = [shown(name, *rows) for name in ("relex", "linear-fit", "two-point", "later", "earlier")]
    found = {decided(*order).method for order in permutations(equal)}
    assert found == {"two-point"}  # the registry's first of them
    assert {decided(*order).method for order in permutations(equal[3:])} == {"earlier"}


@pytest.mark.parametrize("weights", [line(noise=2.0), converging(ratio=0.9), random_walk()], ids=["noisy", "slowing", "walk"])
def test_no_order_of_real_methods_changes_the_verdict(weights):
    names = ["linear-fit", "two-point", "persistence", "relex"]
    found = [inspect_trajectory(weights, [make(name) for name in order]).verdict for order in permutations(names)]
    assert all(one == found[0] for one in found)


def test_skipped_methods_leave_nothing_to_recommend():
    found = decided(MethodBacktest("next", 1.0, skipped="needs 7 checkpoints; 5 are left"))
    assert found.outcome is Outcome.UNPREDICTABLE and "no method" in found.sentence
