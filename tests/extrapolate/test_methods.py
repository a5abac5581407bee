"""What the contract leaves to each method: weights by hand, notes, settings and the registry's errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from next_ray.delta.trajectory import from_adapters
from next_ray.errors import ConfigError, ExtrapolationError
from next_ray.extrapolate.methods.alpharl import pls_line
from next_ray.extrapolate.methods.common import line_weights, slope_weights
from next_ray.extrapolate.methods.merge import merge_weights
from next_ray.extrapolate.methods.registry import METHODS, describe, make
from next_ray.extrapolate.plan import ModulePlan, Plans, Setting, realize
from tests.delta.trajectories import wandering_adapters
from tests.extrapolate.histories import product

STEPS = (10, 20, 40, 50, 80)


@pytest.fixture(scope="module")
def trajectory():
    adapters = wandering_adapters(np.random.default_rng(0), {"m": (60, 50)}, rank=4, count=5)
    return from_adapters(STEPS, adapters, (0.1, 0.2, 0.4, 0.3, 0.35))


def weights(name: str, alpha: float, trajectory, horizon: int = 2, **settings) -> np.ndarray:
    return make(name, **settings).fit(trajectory, Setting(horizon)).at(alpha)["m"].weights


def test_weights_by_hand(trajectory) -> None:
    np.testing.assert_allclose(weights("persistence", 0.5, trajectory), [0, 0, -0.5, 0, 1.5])
    # one horizon is 80 - 40 steps; from checkpoint 2 to the last there are 60
    np.testing.assert_allclose(weights("two-point", 1.5, trajectory, start=2), [0, -1, 0, 0, 2])
    np.testing.assert_allclose(weights("two-point", 1.0, trajectory, start=0), [0, 0, 0, 0, 1.5])
    np.testing.assert_allclose(weights("expo", 0.3, trajectory), [0, 0, 0, 0, 1.3])
    np.testing.assert_allclose(weights("wsm-uniform", 1.0, trajectory), [0, 0, 1 / 3, 1 / 3, 1 / 3])
    np.testing.assert_allclose(weights("soup-uniform", 1.0, trajectory, count=4), [0, 0.25, 0.25, 0.25, 0.25])
    np.testing.assert_allclose(weights("soup-uniform", 0.5, trajectory), [0.1, 0.1, 0.1, 0.1, 0.6])
    # least squares over the last two is the line through them: slope (W_5 - W_4) / 30
    np.testing.assert_allclose(weights("linear-fit", 1.0, trajectory, window=2), [0, 0, 0, -40 / 30, 1 + 40 / 30])


def test_line_weights_are_those_of_polyfit() -> None:
    times, values = np.array(STEPS, dtype=float), np.random.default_rng(1).normal(size=5)
    slope, start = np.polyfit(times, values, 1)
    assert slope_weights(times) @ values == pytest.approx(slope)
    assert line_weights(times, 123.0) @ values == pytest.approx(slope * 123 + start)


@pytest.mark.parametrize("schedule", ["uniform", "cosine", "sqrt"])
def test_merge_weights_are_a_distribution(schedule) -> None:
    for count in (1, 2, 7):
        found = merge_weights(schedule, count)
        assert found.sum() == pytest.approx(1)
        assert (found >= 0).all()


def test_pls_finds_the_direction_of_largest_covariance() -> None:
    """One component by definition: no unit vector has a larger covariance with y; then two plain regressions, and back."""
    rng = np.random.default_rng(2)
    x, y = np.cumsum(rng.normal(size=(8, 5)) + 0.3, axis=0), np.linspace(0.1, 0.6, 8) + 0.02 * rng.normal(size=8)
    scaled = (x - x.mean(axis=0)) / x.std(axis=0, ddof=1)
    tried = rng.normal(size=(20000, 5))
    tried /= np.linalg.norm(tried, axis=1, keepdims=True)
    covariance = np.cov(np.vstack([y, scaled.T]))[0, 1:]
    best = covariance / np.linalg.norm(covariance)
    assert (tried @ covariance).max() <= best @ covariance
    scores = scaled @ best
    slope, start = np.polyfit(scores, y, 1)
    loadings = np.array([np.linalg.lstsq(scores[:, None], column, rcond=None)[0][0] for column in scaled.T])
    expected = x.mean(axis=0) + x.std(axis=0, ddof=1) * loadings * (0.8 - start) / slope
    found = pls_line(x, y)
    assert found is not None
    np.testing.assert_allclose(found.start + 0.8 * found.slope, expected)
    assert pls_line(np.ones((4, 3)), np.arange(4.0)) is None


def test_alpharl_needs_accuracies_that_differ(trajectory) -> None:
    with pytest.raises(ExtrapolationError, match="same accuracy"):
        make("alpharl").fit(replace(trajectory, accuracies=(0.3,) * 5), Setting(2))


def test_greedy_soup_leaves_out_what_hurts_and_counts_its_evaluations(trajectory) -> None:
    asked: list[np.ndarray] = []

    def judge(plans: Plans) -> float:
        asked.append(plans["m"].weights)
        return 0.0 if plans["m"].weights[1] > 0 else float(np.count_nonzero(plans["m"].weights))

    fitted = make("soup-greedy").fit(trajectory, Setting(2, evaluator=judge))
    assert len(asked) == 5
    np.testing.assert_allclose(asked[0], [0, 0, 1, 0, 0])
    np.testing.assert_allclose(fitted.at(1.0)["m"].weights, [0.25, 0, 0.25, 0.25, 0.25])
    assert fitted.notes["ingredients"] == "steps 40, 80, 50, 10"


def test_dare_drops_at_random_and_keeps_the_mean(trajectory) -> None:
    whole = product(trajectory.modules["m"].combine(np.array([0.0, 0, 0, 0, 1])))
    plan = make("dare", probability=0.75).fit(trajectory, Setting(2, seed=3)).at(1.0)["m"]
    found = product(realize(plan, trajectory.modules["m"], "m"))
    kept = found != 0
    np.testing.assert_allclose(found[kept], 4 * whole[kept])
    assert kept.mean() == pytest.approx(0.25, abs=0.03)
    assert (product(realize(plan, trajectory.modules["m"], "n")) != found).any()


def test_key_neurons_keep_the_rows_that_moved_most(trajectory) -> None:
    whole = product(trajectory.modules["m"].combine(np.array([0.0, 0, 0, 0, 1])))
    found = product(realize(make("key-neurons", fraction=0.1).fit(trajectory, Setting(2)).at(2.0)["m"], trajectory.modules["m"]))
    rows = np.argsort(-np.linalg.norm(whole, axis=1))[:6]
    np.testing.assert_allclose(found[rows], 2 * whole[rows])
    assert np.count_nonzero(found.any(axis=1)) == 6


def test_next_tells_its_back_test_and_whether_it_abstains() -> None:
    adapters = wandering_adapters(np.random.default_rng(0), {"m": (12, 10)}, rank=4, count=8)
    quick = {"hidden": 8, "fit_steps": 1, "refine_steps": 1}
    early = make("next", **quick).fit(from_adapters(range(1, 8), adapters[:7]), Setting(3))
    assert early.notes == {"backtest": "no held-out transition yet; the first is known at checkpoint 8"}
    noted = make("next-no-local", **quick).fit(from_adapters((1, 2, 3, 4, 5, 6, 7, 9), adapters), Setting(3)).notes
    assert "on 1 held-out transition" in noted["backtest"]
    assert "lost to persistence" in noted["abstains"]
    assert "not evenly spaced" in noted["spacing"]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("two-pint", {}, "no method 'two-pint'; did you mean 'two-point'\\? The methods are next"),
        ("dare", {"probabilty": 0.5}, "no setting 'probabilty'; did you mean 'probability'\\?"),
        ("no-op", {"x": 1}, "It has no settings"),
        ("next", {"inputs": "local"}, "no setting 'inputs'"),
        ("dare", {"probability": "half"}, "probability must be a number, got 'half'"),
        ("dare", {"probability": True}, "probability must be a number"),
        ("dare", {"probability": 1}, "at least 0 and below 1"),
        ("linear-fit", {"through": "middle"}, "through must be 'last' or 'line'"),
        ("linear-fit", {"window": 2.5}, "window must be a whole number or empty"),
        ("linear-fit", {"window": 1}, "at least 2"),
        ("two-point", {"start": -1}, "0 for the base"),
        ("wsm-sqrt", {"count": 0}, "wsm-sqrt: count"),
        ("key-neurons", {"fraction": 0.0}, "above 0"),
        ("alpharl", {"accuracy": 80.0}, "between 0 and 1"),
        ("next", {"lr": 0.0}, "next: lr must be above 0"),
        ("next-released", {"steps": 0}, "at least 1"),
    ],
)
def test_wrong_names_and_settings_are_explained(name, settings, message) -> None:
    with pytest.raises(ConfigError, match=message):
        make(name, **settings)


def test_the_description_names_every_method_and_setting() -> None:
    text = describe()
    assert all(f"{name}: " in text for name in METHODS)
    assert "probability=0.9" in text
    assert "inputs" not in text


def test_a_horizon_below_one_and_numbers_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ConfigError, match="horizon must be at least 1"):
        Setting(0)
    with pytest.raises(ExtrapolationError, match="not finite"):
        ModulePlan(np.array([1.0, np.nan]))
