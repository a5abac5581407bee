"""One rank, real DeepSpeed, against plain torch."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from next_ray.errors import ConfigError, ModelError, StaleCompletionError
from next_ray.learn.deepspeed_learner import DeepSpeedLearner
from next_ray.types import LoraFactors
from tests.learn.harness import make_groups, make_model, make_plan, make_spec, resolved
from tests.learn.reference import ReferenceLearner

pytestmark = [pytest.mark.deepspeed, pytest.mark.timeout(600)]
GROUPS = make_groups()
STAGES_AND_FORMATS = [(s, d) for s in range(4) for d in ("float32", "bfloat16")]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


def assert_adapters_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name].a, other[name].a)
        np.testing.assert_array_equal(one[name].b, other[name].b)


def run(learner, plan, times=1):
    return [learner.update(plan, resolved(plan)) for _ in range(times)][-1]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("algorithm", "mini"),
    [
        ({"clip_high": 0.28}, None),
        ({"aggregation": "token-mean", "kl_coef": 0.1}, 2),
    ],
)
def test_updates_equal_plain_autograd_and_adamw(model_path, stage, algorithm, mini):
    spec = make_spec(model_path, learner={"zero_stage": stage}, algorithm=algorithm)
    plan = make_plan(GROUPS, 1, mini=mini, budget=64, drop=not algorithm.get("kl_coef"))
    whole = make_plan(GROUPS, 1, mini=mini, drop=False)
    with DeepSpeedLearner(spec) as learner:
        start = learner.policy()
        metrics = run(learner, plan, times=2)
        end = learner.policy()
    reference = ReferenceLearner(spec, start)
    for _ in range(2):
        reference.update(whole, resolved(whole))
    assert metrics["optimizer_steps"] == len(plan.mini_batches)
    for name, (a, b) in reference.factors(start).items():
        assert np.abs(b).max() > 5e-3  # it did move
        np.testing.assert_allclose(end[name].a, a, atol=2e-4)
        np.testing.assert_allclose(end[name].b, b, atol=2e-4)


def test_metrics_on_policy(model_path):
    spec = make_spec(model_path)
    plan = make_plan(GROUPS, 1, budget=40, drop=False)
    with DeepSpeedLearner(spec) as learner:
        reference = ReferenceLearner(spec, learner.policy())
        metrics = run(learner, plan)
    pairs = [(g, i) for g in GROUPS for i in range(len(g.completions))]
    with torch.no_grad():
        own = np.concatenate([reference.logprobs(g, i).numpy() for g, i in pairs])
    d = own - np.concatenate([g.completions[i].logprobs for g, i in pairs])
    assert metrics["tokens"] == metrics["trained_tokens"] == len(d)
    assert metrics["mismatch_abs"] == pytest.approx(np.abs(d).mean(), rel=1e-3)
    assert metrics["mismatch_kl"] == pytest.approx((np.exp(d) - 1 - d).mean(), rel=1e-3)
    assert metrics["mismatch_max"] == pytest.approx(np.abs(d).max(), rel=1e-3)
    assert metrics["ratio_mean"] == metrics["ratio_max"] == metrics["ratio_min"] == 1.0
    assert metrics["clip_fraction"] == 0.0 and metrics["grad_norm"] > 0.0 and metrics["lr"] == 1e-2
    lengths = [len(g.prompt_token_ids) + len(g.completions[i].token_ids) - 1 for g, i in pairs]
    assert 0.0 < metrics["padding_fraction"] < 1.0 - sum(lengths) / (max(lengths) * len(lengths))


@pytest.mark.parametrize(("stage", "dtype"), STAGES_AND_FORMATS)
def test_restored_learner_goes_on_bit_for_bit(model_path, stage, dtype):
    options = {"zero_stage": stage, "dtype": dtype, "schedule": "cosine", "warmup_steps": 2, "weight_decay": 0.1}
    plan = make_plan(GROUPS, 1, mini=3, budget=64)
    with DeepSpeedLearner(make_spec(model_path, learner=options)) as learner:
        run(learner, plan)
        state = learner.snapshot()
        assert state.scalars["position"] == state.scalars["adam_step"] == 2
        run(learner, plan)
        expected, expected_state = learner.policy(), learner.snapshot()
    with DeepSpeedLearner(make_spec(model_path, learner=options, seed=99)) as other:
        other.restore(state)
        assert_adapters_equal(other.policy(), state.adapter)
        run(other, plan)
        assert_adapters_equal(other.policy(), expected)
        again = other.snapshot()
    assert again.scalars == expected_state.scalars
    for name, value in expected_state.moments.items():
        np.testing.assert_array_equal(again.moments[name], value)


@pytest.mark.parametrize(("stage", "dtype"), STAGES_AND_FORMATS)
def test_nonfinite_gradient_is_skipped_and_leaves_no_trace(model_path, stage, dtype):
    plan = make_plan(GROUPS, 1, budget=64)
    poisoned = make_plan(GROUPS, 1, budget=64, advantages=[(float("nan"), 1.0, 1.0, 1.0)] * len(GROUPS))
    options = {"zero_stage": stage, "dtype": dtype}
    with DeepSpeedLearner(make_spec(model_path, learner=options)) as learner:
        start = learner.snapshot()
        metrics = run(learner, poisoned)
        assert metrics["skipped_nonfinite"] == 1 and metrics["optimizer_steps"] == 0
        assert_adapters_equal(learner.policy(), start.adapter)
        assert run(learner, plan)["skipped_nonfinite"] == 0
        after_poison = learner.policy()
        learner.restore(start)
        run(learner, plan)
        assert_adapters_equal(learner.policy(), after_poison)


def test_mini_batch_without_signal_is_skipped_and_counted(model_path):
    zeros = [(0.0,) * 4] * 3
    signal = [(1.0, -1.0, 0.5, 0.0)] * 3
    for drop in (True, False):
        plan = make_plan(GROUPS, 1, mini=3, drop=drop, advantages=zeros + signal)
        with DeepSpeedLearner(make_spec(model_path)) as learner:
            metrics = run(learner, plan)
            assert (metrics["skipped_zero"], metrics["optimizer_steps"]) == (1, 1)
            assert metrics["ratio_max"] == 1.0  # the first real step is exactly on policy
            assert learner.snapshot().scalars["position"] == 2


def test_stale_completion_is_refused_before_any_step(model_path):
    plan = make_plan(GROUPS, 1)
    shards = resolved(plan)
    group = shards[1][2]
    shards[1][2] = replace(group, completions=(*group.completions[:-1], replace(group.completions[-1], version=2)))
    with DeepSpeedLearner(make_spec(model_path)) as learner:
        before = learner.policy()
        with pytest.raises(StaleCompletionError, match="Completion 3 of group 2 in shard 1"):
            learner.update(plan, shards)
        assert_adapters_equal(learner.policy(), before)
        with pytest.raises(ValueError, match="2 ranks"):
            learner.update(make_plan(GROUPS, 2), shards[:0])


@pytest.mark.parametrize(("stage", "dtype"), [(0, "float32"), (0, "bfloat16"), (1, "bfloat16"), (3, "bfloat16")])
def test_adopt_loads_masters_and_copies(model_path, stage, dtype):
    rng = np.random.default_rng(4)
    prompts = [g.prompt_token_ids for g in GROUPS for _ in g.completions]
    completions = [c.token_ids for g in GROUPS for c in g.completions]
    plan = make_plan(GROUPS, 1)
    with DeepSpeedLearner(make_spec(model_path, learner={"zero_stage": stage, "dtype": dtype})) as learner:
        run(learner, plan, times=3)
        here = learner.policy()
        there = {  # rank 5 of which 4 directions matter: exact at the trained rank
            n: LoraFactors(
                a=np.vstack([f.a, rng.normal(size=(1, f.a.shape[1]))]).astype(np.float32),
                b=np.hstack([1.5 * f.b, np.zeros((f.b.shape[0], 1))]).astype(np.float32),
                scale=f.scale,
            )
            for n, f in here.items()
        }
        wanted = learner.logprobs(prompts, completions, adapter=there)
        metrics = learner.adopt(there, "reset", warmup_steps=4)
        assert metrics["truncation_error"] < 1e-6
        for name, factors in learner.policy().items():
            delta = there[name].scale * there[name].b @ there[name].a
            np.testing.assert_allclose(factors.scale * factors.b @ factors.a, delta, atol=1e-5)
        state = learner.snapshot()
        assert state.scalars["adam_step"] == 0 and not any(v.any() for v in state.moments.values())
        got = learner.logprobs(prompts, completions)
        tolerance = 1e-4 if dtype == "float32" else 0.3
        np.testing.assert_allclose(np.concatenate(got), np.concatenate(wanted), atol=tolerance)
        assert run(learner, plan)["lr"] == pytest.approx(1e-2 / 5)
        learner.adopt(here, "keep", warmup_steps=0)
        kept = learner.snapshot()
        assert kept.scalars["adam_step"] == 1 and any(v.any() for v in kept.moments.values())
        assert run(learner, plan)["lr"] == pytest.approx(1e-2)


def test_logprobs(model_path):
    spec = make_spec(model_path)
    with DeepSpeedLearner(spec) as learner:
        run(learner, make_plan(GROUPS, 1), times=2)
        prompts = [g.prompt_token_ids for g in GROUPS for _ in g.completions]
        completions = [c.token_ids for g in GROUPS for c in g.completions]
        adapter = learner.policy()
        reference = ReferenceLearner(spec, adapter)
        with torch.no_grad():
            expected = [reference.logprobs(g, i).numpy() for g in GROUPS for i in range(len(g.completions))]
        before = learner.logprobs(prompts, completions, batch_tokens=32)
        for got, want, ids in zip(before, expected, completions, strict=True):
            assert got.shape == ids.shape and got.dtype == np.float32
            np.testing.assert_allclose(got, want, atol=1e-4)
        other = {n: LoraFactors(f.a[:2], f.b[:, :2], 3.0) for n, f in adapter.items()}
        padded = {n: LoraFactors(np.pad(f.a, ((0, 2), (0, 0))), np.pad(f.b * 1.5, ((0, 0), (0, 2))), 2.0) for n, f in other.items()}
        reference.load(padded)
        with torch.no_grad():
            expected = [reference.logprobs(g, i).numpy() for g in GROUPS for i in range(len(g.completions))]
        under_other = learner.logprobs(prompts, completions, adapter=other)
        np.testing.assert_allclose(np.concatenate(under_other), np.concatenate(expected), atol=1e-4)
        after = learner.logprobs(prompts, completions, batch_tokens=32)
        np.testing.assert_array_equal(np.concatenate(after), np.concatenate(before))
        with pytest.raises(ModelError, match="lm_head"):
            learner.logprobs(prompts, completions, adapter={"lm_head": next(iter(adapter.values()))})


def test_adapter_covers_all_linear_layers_but_the_head_and_follows_the_seed(model_path):
    with DeepSpeedLearner(make_spec(model_path, learner={"dtype": "bfloat16"})) as learner:
        one = learner.policy()
        learner.close()
        learner.close()
    layer = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
    assert set(one) == {f"model.layers.{i}.{m}" for i in range(2) for m in layer}
    for factors in one.values():
        assert factors.scale == 2.0 and not factors.b.any()
        assert 0.9 < np.abs(factors.a).max() * factors.a.shape[1] ** 0.5 <= 1.0
    with DeepSpeedLearner(make_spec(model_path, learner={"zero_stage": 3}, seed=6)) as learner:
        assert not np.array_equal(learner.policy()["model.layers.0.mlp.up_proj"].a, one["model.layers.0.mlp.up_proj"].a)


def test_gradient_checkpointing_changes_nothing(model_path):
    plan = make_plan(GROUPS, 1)
    adapters = []
    for on in (False, True):
        with DeepSpeedLearner(make_spec(model_path, learner={"gradient_checkpointing": on})) as learner:
            run(learner, plan)
            adapters.append(learner.policy())
    assert_adapters_equal(*adapters)


def test_user_errors_are_named(model_path, tmp_path):
    with pytest.raises(ModelError, match="nowhere"):
        DeepSpeedLearner(make_spec(str(tmp_path / "nowhere")))
    with pytest.raises(ConfigError, match="no_such_proj"):
        DeepSpeedLearner(make_spec(model_path, learner={"lora": {"rank": 4, "target_modules": ["no_such_proj"]}}))
    with DeepSpeedLearner(make_spec(model_path)) as learner:
        state = learner.snapshot()
        wrong = {n: LoraFactors(f.a[:2], f.b[:, :2], f.scale) for n, f in state.adapter.items()}
        with pytest.raises(ConfigError, match=r"learner\.lora\.rank"):
            learner.restore(replace(state, adapter=wrong))
        with pytest.raises(ConfigError, match="moment"):
            learner.restore(replace(state, moments={}))
