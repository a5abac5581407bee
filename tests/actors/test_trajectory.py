"""The predictor actor's class without Ray: what it proposes, and when it steps aside."""

from __future__ import annotations

import os

import numpy as np
import pytest

from next_ray.actors.predictor import Findings, PredictorActor, Seen
from next_ray.config import ExtrapolationSection
from next_ray.delta.history import FactorHistory
from next_ray.delta.trajectory import from_adapters
from next_ray.delta.window import DeltaWindow
from next_ray.extrapolate.methods.registry import make
from next_ray.extrapolate.plan import Setting
from next_ray.types import LoraFactors

pytestmark = pytest.mark.ray
NAMES = [("next", 1.0), ("two-point", 1.0)]


def adapter(size: float) -> dict[str, LoraFactors]:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 6)), rng.normal(size=(5, 2))
    return {"m": LoraFactors(a=a.astype(np.float32), b=(size * b).astype(np.float32), scale=0.5)}


def propose(sizes: list[float], monkeypatch: pytest.MonkeyPatch) -> tuple[Findings, list[dict[str, LoraFactors] | None]]:
    monkeypatch.setattr(os, "nice", lambda _: 0)
    config = ExtrapolationSection.model_validate({"horizon": 1, "checkpoints": 3, "predictor": {"fit_steps": 5, "refine_steps": 2}})
    actor, window = PredictorActor(config, seed=0), DeltaWindow(1)
    for index, size in enumerate(sizes, start=1):
        actor.observe(window.observe(index, index, adapter(size)))
    found, *adapters = actor.propose(NAMES, [Seen(1, 1, None), Seen(2, 2, None)], adapter(sizes[-2]), adapter(sizes[-1]))
    return found, list(adapters)


def test_every_wanted_candidate_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    found, (next_, two_point) = propose([1.0, 2.0, 3.0, 4.0], monkeypatch)
    assert not found.abstained
    assert next_ is not None
    assert next_["m"].rank == 3
    assert two_point is not None
    delta = two_point["m"].scale * two_point["m"].b @ two_point["m"].a
    expected = 5.0 * adapter(1.0)["m"].scale * adapter(1.0)["m"].b @ adapter(1.0)["m"].a
    np.testing.assert_allclose(delta, expected, rtol=1e-5)


def test_a_trajectory_that_does_not_move_makes_next_abstain(monkeypatch: pytest.MonkeyPatch) -> None:
    found, (next_, two_point) = propose([0.0, 0.0, 0.0], monkeypatch)
    assert next_ is None
    assert two_point is not None
    assert "not zero" in found.abstained["next"]


def test_alpharl_proposes_what_it_would_offline_from_the_training_accuracies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "nice", lambda _: 0)
    config = ExtrapolationSection.model_validate({"horizon": 1, "checkpoints": 3, "methods": ["alpharl"], "predictor": {"fit_steps": 5}})
    actor, window = PredictorActor(config, seed=0), DeltaWindow(1)
    adapters, accuracies = [adapter(size) for size in (1.0, 2.0, 3.0, 4.0)], [0.1, 0.25, 0.3, 0.42]
    for index, one in enumerate(adapters, start=1):
        actor.observe(window.observe(index, 3 * index, one))
    seen = [Seen(i, 3 * i, accuracy) for i, accuracy in enumerate(accuracies, start=1)]
    found, proposed = actor.propose([("alpharl", 1.0)], seen, *adapters)
    assert not found.abstained
    assert proposed["m"].rank == 1
    offline = make("alpharl").fit(from_adapters([3, 6, 9, 12], adapters, accuracies), Setting(1)).at(1.0)["m"]
    (term,) = offline.triplets
    expected = term.sigma * np.outer(term.u, term.v)
    np.testing.assert_allclose(proposed["m"].scale * proposed["m"].b @ proposed["m"].a, expected, atol=1e-5 * term.sigma)
    assert np.linalg.norm(expected) > np.linalg.norm(adapters[-1]["m"].scale * adapters[-1]["m"].b @ adapters[-1]["m"].a, 2)

    unknown, _ = actor.propose([("alpharl", 1.0)], [*seen[:-1], Seen(4, 12, None)], *adapters)
    assert "accuracy per checkpoint" in unknown.abstained["alpharl"]
    equal, _ = actor.propose([("alpharl", 1.0)], [Seen(i, 3 * i, 0.5) for i in range(1, 5)], *adapters)
    assert "same accuracy" in equal.abstained["alpharl"]


def test_the_workers_triplets_are_used_and_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "nice", lambda _: 0)
    config = ExtrapolationSection.model_validate({"horizon": 1, "checkpoints": 3, "methods": ["alpharl"], "predictor": {"fit_steps": 5}})
    actor, window = PredictorActor(config, seed=0), DeltaWindow(1)
    adapters = [adapter(size) for size in (1.0, 2.0, 3.0)]
    for index, one in enumerate(adapters, start=1):
        actor.observe(window.observe(index, index, one))

    def computed_again(*_: object) -> None:
        raise AssertionError("triplets were computed anew")

    monkeypatch.setattr(FactorHistory, "triplets", computed_again)
    actor.propose([("alpharl", 1.0)], [Seen(i, i, 0.1 * i) for i in (1, 2, 3)], *adapters)
    actor.restart()
    with pytest.raises(AssertionError, match="anew"):
        actor.propose([("alpharl", 1.0)], [Seen(i, i, 0.1 * i) for i in (1, 2, 3)], *adapters)
