"""Every loss kind, aggregation and correction in a real learner, against plain torch on the whole batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from next_ray.learn.deepspeed_learner import DeepSpeedLearner
from next_ray.types import LoraFactors
from tests.learn.harness import free_ports, make_groups, make_model, make_plan, make_spec, resolved, run_gang
from tests.learn.reference import ReferenceLearner

pytestmark = [pytest.mark.deepspeed, pytest.mark.timeout(600)]
GROUPS = make_groups(num_prompts=2)
MAX_TOKENS = 8
CASES = {
    "dual clip": {"name": "dr-grpo", "dual_clip": 1.05, "clip_high": 0.05},
    "gspo": {"name": "gspo"},
    "cispo": {"name": "cispo", "clip_high": 0.01, "correction": "token-tis", "correction_cap": 1.5},
    "entropy": {"name": "rloo", "entropy_coef": 0.05, "correction": "sequence-mask", "correction_band": 0.5},
    "kl in reward": {"name": "reinforce++", "kl_coef": 0.2, "kl_estimator": "k1", "kl_in": "reward"},
}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


def expected_update(reference, plan, algorithm):
    """The plan's optimizer steps in plain torch; returns the mean norm of the gradients. Formulas are spelled out, sequence by sequence."""
    recipe, shards = algorithm.recipe, resolved(plan)
    micros = [[micro for rank in mini.per_rank for micro in rank] for mini in plan.mini_batches]
    minis = [[pair for m in mini for pair in zip(m.samples, m.advantages, strict=True)] for mini in micros]
    old, advantages, base = {}, {}, {}
    with torch.no_grad():
        for index, advantage in (pair for mini in minis for pair in mini):
            group = shards[index.shard][index.group]
            old[index] = reference.logprobs(group, index.sample)
            with reference.model.disable_adapter():
                base[index] = reference.logprobs(group, index.sample)
            advantages[index] = torch.full_like(old[index], advantage)
    if algorithm.has_kl_reward:
        for index, values in advantages.items():
            kl = old[index] - base[index]
            to_go = torch.stack([kl[t:].sum() for t in range(len(kl))])
            advantages[index] = values - algorithm.kl_coef * to_go
        everything = torch.cat(list(advantages.values()))
        advantages = {i: (a - everything.mean()) / everything.std(unbiased=False) for i, a in advantages.items()}
    norms = []
    for mini in minis:
        terms, num_tokens = [], sum(len(old[i]) for i, _ in mini)
        for index, _ in mini:
            completion = shards[index.shard][index.group].completions[index.sample]
            logprobs, entropy = reference.logprobs_and_entropy(shards[index.shard][index.group], index.sample)
            a, difference = advantages[index], logprobs - old[index]
            ratio = (difference.mean() if recipe.loss == "sequence-clip" else difference).exp()
            bounded = ratio.clip(1 - recipe.clip_low, 1 + recipe.clip_high)
            gain = bounded.detach() * a * logprobs if recipe.loss == "cispo" else torch.min(ratio * a, bounded * a)
            if algorithm.dual_clip:
                gain = torch.where(a < 0, torch.max(gain, algorithm.dual_clip * a), gain)
            mismatch = old[index] - torch.from_numpy(completion.logprobs)
            if algorithm.correction == "token-tis":
                gain = gain * mismatch.exp().clip(max=algorithm.correction_cap)
            if algorithm.correction == "sequence-mask":
                gain = gain * float(abs(mismatch.mean()) <= algorithm.correction_band)
            gain = gain + algorithm.entropy_coef * entropy
            divisor = {
                "seq-mean-token-mean": len(mini) * len(a),
                "token-mean": num_tokens,
                "seq-mean-token-sum": len(mini),
                "seq-mean-token-sum-norm": len(mini) * MAX_TOKENS,
            }[recipe.aggregation]
            terms.append(-gain.sum() / divisor)
        norms.append(reference.step(torch.stack(terms).sum()))
    return sum(norms) / len(norms)


def check(rank, world_size, case, path, port):
    """Two mini batches, the second off-policy; at ZeRO stage 3 when there are several ranks."""
    spec = make_spec(path, rank, world_size, port, learner={"zero_stage": 3 * (world_size > 1)}, algorithm=CASES[case])
    rng = np.random.default_rng(8)
    advantages = [tuple(rng.normal(size=len(g.completions)).tolist()) for g in GROUPS]
    with DeepSpeedLearner(spec) as learner:
        state = learner.snapshot()
        # A trained-looking adapter: the policy differs from the base, so that the KL does not vanish.
        start = {n: LoraFactors(f.a, rng.normal(0, 0.05, f.b.shape).astype(np.float32), f.scale) for n, f in state.adapter.items()}
        learner.restore(replace(state, adapter=start))
        plan = make_plan(GROUPS, world_size, mini=1, budget=40, advantages=advantages)
        metrics = learner.update(plan, resolved(plan))
        end = learner.policy()
    reference = ReferenceLearner(spec, start)
    norm = expected_update(reference, make_plan(GROUPS, 1, mini=1, advantages=advantages), spec.algorithm)
    assert metrics["optimizer_steps"] == 2
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-3)
    for name, (a, b) in reference.factors(start).items():
        np.testing.assert_allclose(end[name].a, a, atol=2e-4, err_msg=name)
        np.testing.assert_allclose(end[name].b, b, atol=2e-4, err_msg=name)
    if spec.algorithm.correction != "none":
        assert 0 < metrics["corrected_fraction"] < 1
    if spec.algorithm.has_kl_reward:
        assert metrics["kl"] != 0.0


@pytest.mark.parametrize("case", CASES)
def test_update_equals_plain_torch(model_path, case):
    check(0, 1, case, model_path, None)


@pytest.mark.slow
def test_kl_rewards_are_whitened_over_all_ranks(model_path):
    run_gang(2, check, "kl in reward", model_path, free_ports(1)[0])
