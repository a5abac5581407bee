"""All weights trained: real DeepSpeed, one rank, against plain torch."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from next_ray.errors import ConfigError
from next_ray.learn.deepspeed_learner import DeepSpeedLearner
from next_ray.rollout.probe import probe_adapter
from next_ray.types import FullPart, LearnerState
from next_ray.weights import plan_parts, to_array, to_tensor
from tests.learn.harness import free_ports, make_groups, make_model, make_plan, make_spec, resolved, run_gang

GROUPS = make_groups()


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


def full_spec(model_path, **overrides):
    learner = {"mode": "full", "lr": 1e-3} | overrides.pop("learner", {})
    return make_spec(model_path, learner=learner, **overrides)


def weights_of(learner):
    return {name: to_tensor(values).float() for part in learner.policy() for name, values in part.items()}


def snapshot_of(learner):
    """A state that outlives the learner's next update."""
    state = learner.snapshot()
    return replace(state, parts=[FullPart(dict(part.weights), dict(part.moments)) for part in state.parts])


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=0)


def test_parts_hold_every_parameter_once_in_order():
    shapes = {"a": (10, 10), "b": (3,), "c": (40, 40), "d": (2, 2)}
    assert plan_parts(shapes, 500) == [["a", "b"], ["c"], ["d"]]
    assert plan_parts(shapes) == [["a", "b", "c", "d"]]
    assert plan_parts({}) == []


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_arrays_carry_every_format(dtype):
    tensor = torch.randn(5, 3)
    array = to_array(tensor, dtype)
    assert torch.equal(to_tensor(array), tensor.to(getattr(torch, dtype)))
    array[:] = 0
    assert tensor.abs().sum() > 0


def test_a_read_only_array_becomes_a_tensor_of_its_own():
    array = to_array(torch.ones(2), "bfloat16")
    array.flags.writeable = False
    tensor = to_tensor(array)
    tensor.zero_()
    assert to_tensor(array).sum() == 2


@pytest.mark.deepspeed
@pytest.mark.timeout(600)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("algorithm", [{}, {"kl_coef": 0.1}])
def test_updates_equal_plain_autograd_and_adamw(model_path, stage, algorithm):
    spec = full_spec(model_path, learner={"zero_stage": stage}, algorithm=algorithm)
    plan = make_plan(GROUPS, 1, budget=64, drop=not algorithm)
    with DeepSpeedLearner(spec) as learner:
        start = weights_of(learner)
        metrics = [learner.update(plan, resolved(plan)) for _ in range(2)]
        end = weights_of(learner)
    expected = plain_updates(spec, 2)
    assert metrics[1]["optimizer_steps"] == 1
    if algorithm:
        assert metrics[0]["kl"] == pytest.approx(0, abs=1e-5)
        assert metrics[1]["kl"] > 1e-5
    assert sorted(end) == sorted(expected)
    for name, value in expected.items():
        assert (value - start[name]).abs().max() > 1e-4, name  # it did move
        torch.testing.assert_close(end[name], value, rtol=0, atol=5e-5)


def plain_updates(spec, times):
    """The same by hand: sequence means of token means, no micro batches, torch's AdamW."""
    model = AutoModelForCausalLM.from_pretrained(spec.model_path, dtype=torch.float32).eval()
    frozen = AutoModelForCausalLM.from_pretrained(spec.model_path, dtype=torch.float32).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.learner.lr, betas=spec.learner.betas, weight_decay=0.0)
    plan = make_plan(GROUPS, 1, drop=False)
    (mini,) = plan.mini_batches
    shards = resolved(plan)
    for _ in range(times):
        optimizer.zero_grad()
        loss = torch.zeros(())
        for micro in mini.per_rank[0]:
            for index, advantage in zip(micro.samples, micro.advantages, strict=True):
                group = shards[index.shard][index.group]
                logprobs = completion_logprobs(model, group, index.sample, spec.temperature)
                term = -advantage * (logprobs - logprobs.detach()).exp()
                if spec.algorithm.kl_coef:
                    gap = completion_logprobs(frozen, group, index.sample, spec.temperature).detach() - logprobs
                    term = term + spec.algorithm.kl_coef * (gap.exp() - gap - 1)
                loss = loss + term.mean() / mini.num_sequences
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), spec.learner.max_grad_norm)
        optimizer.step()
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def completion_logprobs(model, group, sample, temperature):
    prompt, completion = group.prompt_token_ids, group.completions[sample].token_ids
    ids = torch.tensor(np.concatenate([prompt, completion])[None], dtype=torch.long)
    logits = model(ids).logits[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0]


@pytest.mark.deepspeed
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("first", "second"), [(0, 3), (3, 1), (2, 0)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_snapshot_goes_on_in_another_stage(model_path, first, second, dtype):
    plan = make_plan(GROUPS, 1)
    with DeepSpeedLearner(full_spec(model_path, learner={"zero_stage": first, "dtype": dtype})) as learner:
        learner.update(plan, resolved(plan))
        state = snapshot_of(learner)
        learner.update(plan, resolved(plan))
        expected = weights_of(learner)
    with DeepSpeedLearner(full_spec(model_path, learner={"zero_stage": second, "dtype": dtype})) as other:
        other.restore(state)
        assert other.progress.optimizer_steps == 1
        assert {n: v for part in other.snapshot().parts for n, v in part.moments.items()}.keys() == {
            n for part in state.parts for n in part.moments
        }
        other.update(plan, resolved(plan))
        found = weights_of(other)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=2e-4)


@pytest.mark.deepspeed
@pytest.mark.timeout(600)
@pytest.mark.parametrize("stage", [0, 3])
def test_a_candidate_is_added_and_counts_at_once(model_path, stage):
    with DeepSpeedLearner(full_spec(model_path, learner={"zero_stage": stage})) as learner:
        start = weights_of(learner)
        shapes = {"model.layers.0.self_attn.q_proj": (32, 32), "model.layers.1.mlp.down_proj": (32, 64)}
        candidate = probe_adapter(shapes, 1, 1.0, seed=3)
        pairs = [(g.prompt_token_ids, c.token_ids) for g in GROUPS for c in g.completions]
        prompts, completions = [p for p, _ in pairs], [c for _, c in pairs]
        beside = learner.logprobs(prompts, completions, candidate)
        whole = {name: to_tensor(values) for part in learner.policy_beside(candidate) for name, values in part.items()}
        assert_equal(weights_of(learner), start)
        assert learner.adopt(candidate, "reset", 0) == {"truncation_error": 0.0}
        moved = weights_of(learner)
        after = learner.logprobs(prompts, completions)
    assert_equal(moved, whole)
    for name, value in start.items():
        factors = candidate.get(name.removesuffix(".weight"))
        delta = 0 if factors is None else torch.from_numpy(factors.b @ factors.a)
        torch.testing.assert_close(moved[name], value + delta, rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.concatenate(after), np.concatenate(beside), atol=1e-4)


@pytest.mark.deepspeed
@pytest.mark.timeout(600)
def test_another_models_state_is_refused(model_path):
    with DeepSpeedLearner(full_spec(model_path)) as learner:
        state = snapshot_of(learner)
        (part,) = state.parts
        for weights, moments, says in [
            ({**part.weights, "x": np.zeros(3, np.float32)}, part.moments, "x has shape"),
            ({n: v for n, v in part.weights.items() if "norm" not in n}, part.moments, "moment|shape|lacks"),
            (part.weights, {}, "exp_avg"),
            ({}, {}, "lacks"),
        ]:
            with pytest.raises(ConfigError, match=says):
                learner.restore(LearnerState({}, {}, state.scalars, [FullPart(weights, moments)]))
        with pytest.raises(ConfigError, match="no linear layer"):
            learner.adopt(probe_adapter({"model.layers.9.mlp.up_proj": (64, 32)}, 1, 1.0, 0), "reset", 0)


def gang_job(rank, world_size, model_path, folder, ports):
    for stage in range(4):
        spec = full_spec(
            model_path, learner={"zero_stage": stage, "schedule": "linear"}, rank=rank, world_size=world_size, port=ports[stage]
        )
        plan = make_plan(GROUPS, world_size, mini=4, budget=30)
        with DeepSpeedLearner(spec) as learner:
            learner.restore(load_state(folder / "middle.npz"))
            learner.update(plan, resolved(plan))
            state = snapshot_of(learner)
            assert rank == 0 or not any(part.weights or part.moments for part in state.parts)
            if rank == 0:
                save_state(folder / f"stage{stage}.npz", state)


def save_state(path, state):
    arrays: dict[str, Any] = {n: v for part in state.parts for n, v in (*part.weights.items(), *part.moments.items())}
    arrays |= {f"scalar {name}": np.array(value) for name, value in state.scalars.items()}
    np.savez(path, **arrays)


def load_state(path):
    """Two parts, cut elsewhere than they were written."""
    with np.load(path) as data:
        arrays = {name: data[name] for name in data}
    scalars = {name.removeprefix("scalar "): float(arrays.pop(name)) for name in list(arrays) if name.startswith("scalar ")}
    names = [name for name in arrays if not name.endswith((".exp_avg", ".exp_avg_sq"))]
    parts = []
    for half in (names[: len(names) // 2], names[len(names) // 2 :]):
        moments = [f"{name}.{key}" for name in half for key in ("exp_avg", "exp_avg_sq")]
        parts.append(FullPart({n: arrays[n] for n in half}, {n: arrays[n] for n in moments}))
    return LearnerState({}, {}, scalars, parts)


@pytest.mark.deepspeed
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_resumed_on_two_ranks_at_any_stage_equals_one_rank(model_path, tmp_path):
    plan = make_plan(GROUPS, 1, mini=4)
    with DeepSpeedLearner(full_spec(model_path, learner={"schedule": "linear"})) as learner:
        learner.update(plan, resolved(plan))
        save_state(tmp_path / "middle.npz", learner.snapshot())
        learner.update(plan, resolved(plan))
        save_state(tmp_path / "end.npz", learner.snapshot())
    run_gang(2, gang_job, model_path, tmp_path, free_ports(4))
    with np.load(tmp_path / "end.npz") as expected, np.load(tmp_path / "middle.npz") as middle:
        assert max(np.abs(expected[n] - middle[n]).max() for n in expected if n.endswith("proj.weight")) > 1e-3
        for stage in range(4):
            with np.load(tmp_path / f"stage{stage}.npz") as found:
                assert sorted(found) == sorted(expected)
                for name in expected:
                    np.testing.assert_allclose(found[name], expected[name], atol=1e-4, err_msg=f"stage {stage} {name}")
