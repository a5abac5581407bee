"""The learner actor's own part, with a real DeepSpeed learner in this process."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from next_ray.actors.learners import LearnerActor
from next_ray.actors.shipping import ModelPlace
from next_ray.config import ModelSection
from next_ray.types import LoraFactors
from tests.learn.harness import make_groups, make_model, make_plan, make_spec, resolved
from tests.learn.reference import ReferenceLearner

pytestmark = [pytest.mark.deepspeed, pytest.mark.timeout(600)]
GROUPS = make_groups()


def test_the_probe_sees_the_base_after_training_too(tmp_path: Path) -> None:
    spec = make_spec(make_model(tmp_path))
    actor = LearnerActor(ModelPlace(ModelSection(), spec.model_path, ""), None)
    trained, _ = actor.start(spec, None)
    try:
        plan = make_plan(GROUPS, 1)
        for _ in range(3):
            trained, _ = actor.update(plan, *resolved(plan))
        assert isinstance(trained, dict)
        reference = ReferenceLearner(spec, {name: LoraFactors(f.a, np.zeros_like(f.b), f.scale) for name, f in trained.items()})
        with torch.no_grad():
            base = np.concatenate([reference.logprobs(g, i).numpy() for g in GROUPS for i in range(len(g.completions))])
            reference.load(trained)
            policy = np.concatenate([reference.logprobs(g, i).numpy() for g in GROUPS for i in range(len(g.completions))])
        assert np.abs(policy - base).max() > 0.01
        np.testing.assert_allclose(np.concatenate(actor.logprobs(GROUPS, None)), base, atol=1e-4)
        np.testing.assert_allclose(np.concatenate(actor.logprobs(GROUPS, trained)), policy, atol=1e-4)
    finally:
        actor.close()
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} & set(os.environ)  # nor do later processes find it
