"""Losses and gradients that are not finite: skipped on all ranks alike, counted, and without any other trace."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from next_ray.learn import deepspeed_learner
from next_ray.learn.deepspeed_learner import DeepSpeedLearner
from tests.learn.harness import free_port, free_ports, make_advantages, make_groups, make_model, make_plan, make_spec, resolved, run_gang

pytestmark = [pytest.mark.deepspeed, pytest.mark.timeout(600)]
GROUPS = make_groups(num_prompts=4)
OPTIONS = {"schedule": "linear", "warmup_steps": 2}
STAGES_AND_FORMATS = [(stage, dtype) for stage in range(4) for dtype in ("float32", "bfloat16")]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


def plan(ranks, poison=None):
    """Two mini batches of two prompts; `poison` is the advantage of the last prompt's first completion."""
    advantages = make_advantages(GROUPS)
    if poison is not None:
        advantages[-1] = (poison, *advantages[-1][1:])
    return make_plan(GROUPS, ranks, mini=2, budget=48, advantages=advantages)


def first_half(whole):
    return replace(whole, mini_batches=whole.mini_batches[:1])


def update(learner, one):
    return learner.update(one, resolved(one))


def everything(learner):
    """The state without the count of skipped steps, on the first rank."""
    state = learner.snapshot()
    arrays = {name: np.concatenate([f.a.ravel(), f.b.ravel()]) for name, f in state.adapter.items()} | dict(state.moments)
    for part in state.parts:
        arrays |= dict(part.weights) | dict(part.moments)
    return arrays, {name: value for name, value in state.scalars.items() if name != "skipped_nonfinite"}


def assert_same(one, other):
    assert one[1] == other[1]
    assert one[0].keys() == other[0].keys()
    for name, values in one[0].items():
        np.testing.assert_array_equal(values, other[0][name], err_msg=name)


def skip_and_compare(spec, ranks, port=None):
    """A learner that meets poison in its second mini batch, three times, against one that never had that mini batch."""
    good, poisoned = plan(ranks), plan(ranks, float("nan"))
    with DeepSpeedLearner(spec) as learner:
        clean = update(learner, first_half(good))
        expected = everything(learner)
        assert expected[1]["position"] == 1
        clean_after = update(learner, good)
        expected_after = everything(learner)
    with DeepSpeedLearner(replace(spec, master_port=port or free_port())) as learner:
        metrics = update(learner, poisoned)
        assert (metrics["optimizer_steps"], metrics["skipped_nonfinite"]) == (1, 1)
        for name in ("loss", "entropy", "grad_norm", "mismatch_abs", "trained_tokens", "ratio_max"):
            assert metrics[name] == clean[name], name
        assert_same(everything(learner), expected)
        only_poison = replace(poisoned, mini_batches=poisoned.mini_batches[1:])
        for _ in range(2):
            metrics = update(learner, only_poison)
            assert (metrics["optimizer_steps"], metrics["skipped_nonfinite"], metrics["grad_norm"]) == (0, 1, 0)
            assert all(np.isfinite(value) for value in metrics.values())
        assert learner.progress.skipped_nonfinite == 3
        assert_same(everything(learner), expected)
        assert update(learner, good) == clean_after
        assert_same(everything(learner), expected_after)


@pytest.mark.parametrize(("stage", "dtype"), STAGES_AND_FORMATS)
def test_skipped_steps_leave_weights_moments_and_schedule_as_they_were(model_path, stage, dtype):
    skip_and_compare(make_spec(model_path, learner={"zero_stage": stage, "dtype": dtype, **OPTIONS}), 1)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_full_weights_are_spared_too(model_path, stage):
    skip_and_compare(make_spec(model_path, learner={"zero_stage": stage, "mode": "full", "lr": 1e-3, **OPTIONS}), 1)


@pytest.mark.parametrize(("stage", "dtype"), STAGES_AND_FORMATS)
def test_an_infinite_loss_with_a_finite_gradient_is_skipped(model_path, stage, dtype, monkeypatch):
    def infinite(*args):
        outcome = real(*args)
        return replace(outcome, loss=outcome.loss + torch.inf)

    real = deepspeed_learner.micro_batch_loss
    good = plan(1)
    with DeepSpeedLearner(make_spec(model_path, learner={"zero_stage": stage, "dtype": dtype})) as learner:
        before = everything(learner)
        monkeypatch.setattr(deepspeed_learner, "micro_batch_loss", infinite)
        assert update(learner, good)["skipped_nonfinite"] == 2
        assert_same(everything(learner), before)
        monkeypatch.setattr(deepspeed_learner, "micro_batch_loss", real)
        assert update(learner, good)["optimizer_steps"] == 2


FULL = {"zero_stage": 3, "mode": "full", "lr": 1e-3}


def gang_job(rank, world_size, model_path, ports, kinds):
    """Only one rank's share holds the poison."""
    poisoned = plan(world_size, float("nan")).mini_batches[1]
    assert sum(any(np.isnan(a) for micro in own for a in micro.advantages) for own in poisoned.per_rank) == 1
    for i, kind in enumerate(kinds):
        skip_and_compare(make_spec(model_path, rank, world_size, ports[2 * i], learner=kind | OPTIONS), world_size, ports[2 * i + 1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "kinds",
    [
        [*({"zero_stage": stage, "dtype": "float32"} for stage in (0, 3)), FULL],
        [{"zero_stage": stage, "dtype": "bfloat16"} for stage in range(3)],
    ],
    ids=["float32", "bfloat16"],
)
def test_poison_on_one_rank_is_skipped_on_all(model_path, kinds):
    run_gang(2, gang_job, model_path, free_ports(6), kinds)
