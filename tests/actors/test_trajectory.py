"""The predictor actor's class without Ray: what it proposes, and when it steps aside."""

from __future__ import annotations

import os

import numpy as np
import pytest

from next_ray.actors.trajectory import Findings, PredictorActor
from next_ray.config import ExtrapolationSection
from next_ray.delta.window import DeltaWindow
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
    found, *adapters = actor.propose(NAMES, [1, 2], adapter(sizes[-2]), adapter(sizes[-1]))
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
