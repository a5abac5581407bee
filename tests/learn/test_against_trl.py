"""Advantages and losses are those of TRL's GRPOTrainer and RLOOTrainer on the same random tensors."""

from typing import Any

import numpy as np
import pytest
import torch

from next_ray.config import AlgorithmSection
from next_ray.learn.advantages import group_advantages
from next_ray.learn.corrections import correction_weights
from next_ray.learn.losses import Denominators, token_weights
from next_ray.learn.objective import Inputs, micro_batch_loss
from tests.learn.trl_code import bare_trainer, grpo_advantages, grpo_trainer, importance_ratio, loss, rloo_advantages, rloo_trainer

TOLERANCE = 1e-6
LENGTHS = torch.tensor([3, 7, 1, 5, 6, 2])
MASK = (torch.arange(7)[None] < LENGTHS[:, None]).long()
MAX_TOKENS = 9


def draw(seed: int, spread: float = 0.4) -> dict[str, torch.Tensor]:
    """Log-probs of policy, old policy, engine and reference, and entropies [S, L]; advantages [S]. float64."""
    rng = np.random.default_rng(seed)
    base = -rng.exponential(1.5, MASK.shape)
    names = ("logprobs", "old", "engine", "reference")
    tensors = {name: torch.tensor(base + rng.normal(0, spread, MASK.shape)) for name in names}
    return tensors | {"entropy": torch.tensor(rng.exponential(1.0, MASK.shape)), "advantages": torch.tensor(rng.normal(size=len(MASK)))}


def ours(algorithm: dict[str, Any], data: dict[str, torch.Tensor]) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Loss, and its gradients by log-probs and by entropies [S, L]."""
    cfg = AlgorithmSection(**algorithm)
    logprobs, entropy = data["logprobs"].clone().requires_grad_(), data["entropy"].clone().requires_grad_()
    keep = MASK.bool()
    whole = Denominators(len(LENGTHS), int(LENGTHS.sum()), MAX_TOKENS)
    inputs = Inputs(
        advantages=torch.repeat_interleave(data["advantages"], LENGTHS),
        old=data["old"][keep],
        engine=data["engine"][keep],
        weights=token_weights(LENGTHS, cfg.recipe.aggregation, whole).double(),
        lengths=LENGTHS,
        reference=data["reference"][keep] if cfg.kl_coef else None,
    )
    result = micro_batch_loss(cfg, logprobs[keep], entropy[keep], inputs).loss
    by_logprobs, by_entropy = torch.autograd.grad(result, (logprobs, entropy), allow_unused=True)
    return result.item(), by_logprobs, torch.zeros_like(entropy) if by_entropy is None else by_entropy


def theirs(settings: dict[str, Any], data: dict[str, torch.Tensor], trainer_class: type = grpo_trainer.GRPOTrainer, **inputs: torch.Tensor):
    logprobs, entropy = data["logprobs"].clone().requires_grad_(), data["entropy"].clone().requires_grad_()
    trainer = bare_trainer(trainer_class, logprobs, entropy, **{"max_completion_length": MAX_TOKENS} | settings)
    given = {"advantages": data["advantages"], "old_per_token_logps": data["old"], "ref_per_token_logps": data["reference"]}
    result = loss(trainer, MASK, **given | inputs)
    by_logprobs, by_entropy = torch.autograd.grad(result, (logprobs, entropy), allow_unused=True)
    return result.item(), by_logprobs, torch.zeros_like(entropy) if by_entropy is None else by_entropy


CASES = [
    pytest.param({}, {}, id="grpo"),
    pytest.param({"kl_coef": 0.3}, {"beta": 0.3}, id="grpo with k3"),
    pytest.param({"name": "dr-grpo"}, {"loss_type": "dr_grpo"}, id="dr-grpo"),
    pytest.param({"name": "dapo"}, {"loss_type": "dapo", "epsilon_high": 0.28}, id="dapo"),
    pytest.param({"aggregation": "token-mean"}, {"loss_type": "bnpo"}, id="token-mean"),
    pytest.param({"aggregation": "seq-mean-token-sum"}, {"loss_type": "luspo"}, id="seq-mean-token-sum"),
    pytest.param(
        {"name": "gspo", "clip_low": 0.1, "clip_high": 0.05},
        {"importance_sampling_level": "sequence", "epsilon_low": 0.1, "epsilon_high": 0.05},
        id="gspo",
    ),
    pytest.param({"name": "gspo"}, {"importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4}, id="gspo's clips"),
    pytest.param({"name": "cispo", "clip_high": 0.3}, {"loss_type": "cispo", "epsilon_high": 1.3}, id="cispo"),
    pytest.param({"name": "dapo", "entropy_coef": 0.02}, {"loss_type": "dapo", "epsilon_high": 0.28, "entropy_coef": 0.02}, id="entropy"),
]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("algorithm", "settings"), CASES)
def test_loss_and_gradient_are_trls(algorithm, settings, seed):
    data = draw(seed)
    mine, other = ours(algorithm, data), theirs(settings, data)
    assert mine[0] == pytest.approx(other[0], abs=TOLERANCE)
    assert other[1].abs().max() > 1e-3
    for a, b in zip(mine[1:], other[1:], strict=True):
        torch.testing.assert_close(a, b, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["grpo", "dapo", "cispo"])
def test_token_tis_is_trls_truncated_importance_sampling(name):
    data, cap = draw(2), 1.2
    ratio = importance_ratio(data["old"], data["engine"], MASK, "token_truncate", cap)
    cfg = AlgorithmSection(correction="token-tis", correction_cap=cap)
    weights = correction_weights(cfg, data["old"][MASK.bool()], data["engine"][MASK.bool()], LENGTHS)
    assert weights is not None and 0 < (weights == cap).sum() < len(weights)
    torch.testing.assert_close(weights, ratio[MASK.bool()], atol=TOLERANCE, rtol=0)
    high = {"grpo": 0.2, "dapo": 0.28, "cispo": 5.0}[name]
    settings = {"loss_type": name, "epsilon_high": high, "use_vllm": True, "vllm_importance_sampling_correction": True, "beta": 0.1}
    other = theirs(settings, data, importance_sampling_ratio=ratio)
    mine = ours({"name": name, "correction": "token-tis", "correction_cap": cap, "kl_coef": 0.1}, data)
    assert mine[0] == pytest.approx(other[0], abs=TOLERANCE)
    torch.testing.assert_close(mine[1], other[1], atol=TOLERANCE, rtol=0)


def test_rloo_on_policy_has_the_gradient_of_trls_rloo():
    data = draw(3)
    data["old"] = data["logprobs"]
    old = (data["old"] * MASK).sum(1)
    _, other, _ = theirs({}, data, rloo_trainer.RLOOTrainer, old_logps=old)
    _, mine, _ = ours({"name": "rloo"}, data)
    torch.testing.assert_close(mine, other, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("name", "scale"), [("grpo", "group"), ("dr-grpo", "none"), ("rloo", None)])
def test_advantages_are_trls(name, scale):
    # TRL adds 1e-4 to the deviation, we 1e-6: with rewards of the order of 10^4 neither is seen.
    rewards = torch.tensor(1e4 * np.random.default_rng(4).normal(size=(5, 4)))
    rewards[2] = rewards[2, 0]
    expected = rloo_advantages(rewards) if scale is None else grpo_advantages(rewards, scale)
    mine = torch.tensor(group_advantages(rewards.tolist(), AlgorithmSection(name=name)))
    unit = 1.0 if name == "grpo" else 1e4
    torch.testing.assert_close(mine.double() / unit, expected / unit, atol=TOLERANCE, rtol=0)
    assert expected.abs().max() > 0.5
