import math
from typing import get_args

import numpy as np
import pytest
import torch

from next_ray.config import AlgorithmSection
from next_ray.config.algorithms import Aggregation
from next_ray.learn.corrections import correction_weights, num_corrected
from next_ray.learn.losses import Clips, Denominators, clipped_surrogate, kl_penalty, policy_loss, token_weights
from next_ray.learn.objective import sums_to_go


def surrogate(ratio, advantage, low=0.2, high=0.3):
    logprobs = torch.tensor([math.log(ratio)], requires_grad=True)
    result = clipped_surrogate(logprobs, torch.zeros(1), torch.tensor([advantage]), low, high)
    result.loss.sum().backward()
    assert logprobs.grad is not None
    return result.loss.item(), logprobs.grad.item(), bool(result.clipped.item()), result.ratio.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        (1.0, 2.0, -2.0, -2.0, False),
        (1.2, 2.0, -2.4, -2.4, False),
        (1.5, 2.0, -1.3 * 2.0, 0.0, True),  # above 1 + high, good action: held back
        (0.5, 2.0, -1.0, -1.0, False),  # below 1 - low, good action: pulled up
        (0.5, -2.0, 0.8 * 2.0, 0.0, True),  # below 1 - low, bad action: held back
        (1.5, -2.0, 3.0, 3.0, False),  # above 1 + high, bad action: pushed down
    ],
)
def test_clipped_surrogate_by_hand(ratio, advantage, loss, gradient, clipped):
    assert surrogate(ratio, advantage) == pytest.approx((loss, gradient, clipped, ratio), abs=1e-6)


def test_gradient_on_policy_is_that_of_reinforce():
    rng = np.random.default_rng(0)
    logprobs = torch.tensor(rng.normal(size=7), requires_grad=True)
    advantages = torch.tensor(rng.normal(size=7))
    clipped_surrogate(logprobs, logprobs.detach(), advantages, 0.2, 0.2).loss.sum().backward()
    torch.testing.assert_close(logprobs.grad, -advantages)


def test_far_ratios_stay_finite():
    result = clipped_surrogate(torch.tensor([500.0, -500.0]), torch.zeros(2), torch.tensor([-1.0, -1.0]), 0.2, 0.2)
    assert torch.isfinite(result.loss).all()


def losses(kind, ratios, advantages, lengths, **clips):
    logprobs = torch.tensor([math.log(r) for r in ratios], dtype=torch.float64, requires_grad=True)
    clips = Clips(**({"low": 0.2, "high": 0.3} | clips))
    zeros = torch.zeros(len(ratios), dtype=torch.float64)
    result = policy_loss(kind, logprobs, zeros, torch.tensor(advantages, dtype=torch.float64), torch.tensor(lengths), clips)
    result.loss.sum().backward()
    assert logprobs.grad is not None
    return result.loss.tolist(), logprobs.grad.tolist(), result.clipped.tolist()


def test_dual_clip_by_hand():
    values, gradients, clipped = losses("clip", (4.0, 2.0, 4.0), (-1.0, -1.0, 1.0), (3,), dual=3.0)
    assert values == pytest.approx((3.0, 2.0, -1.3))  # bounded by 3, within the bound, bounded by 1 + high
    assert gradients == pytest.approx((0.0, 2.0, 0.0))
    assert clipped == [True, False, True]


def test_sequence_ratio_is_the_geometric_mean_and_shares_its_gradient():
    # 1.1 * 1.2 * 0.9 = 1.188 within the clip; the second sequence, 1.5 * 1.4, is beyond it
    values, gradients, clipped = losses("sequence-clip", (1.1, 1.2, 0.9, 1.5, 1.4), (2.0, 2.0, 2.0, 1.0, 1.0), (3, 0, 2))
    ratio = 1.188 ** (1 / 3)
    assert values == pytest.approx((-2 * ratio,) * 3 + (-1.3,) * 2)
    assert gradients == pytest.approx((-2 * ratio,) * 3 + (0.0,) * 2)
    assert clipped == [False] * 3 + [True] * 2


def test_cispo_weighs_log_probabilities_by_the_clipped_ratio():
    ratios, advantages = (1.5, 1.1, 0.5), (2.0, -1.0, 1.0)
    values, gradients, clipped = losses("cispo", ratios, advantages, (3,))
    weights = (1.3, 1.1, 0.8)
    expected = [-w * a for w, a in zip(weights, advantages, strict=True)]
    assert gradients == pytest.approx(expected)  # also where the ratio is clipped
    assert values == pytest.approx([e * math.log(r) for e, r in zip(expected, ratios, strict=True)])
    assert clipped == [True, False, True]


@pytest.mark.parametrize(
    ("fields", "expected", "corrected"),
    [
        ({}, None, 0),
        ({"correction": "token-tis", "correction_cap": 1.5}, [1.2, 0.8, 1.5, 0.4], 1),
        # mean log ratios: log(1.2 * 0.8) / 2 = -0.02 and log(2 * 0.4) / 2 = -0.11
        ({"correction": "sequence-mask", "correction_band": 0.05}, [1.0, 1.0, 0.0, 0.0], 2),
    ],
)
def test_corrections_by_hand(fields, expected, corrected):
    cfg = AlgorithmSection(**fields)
    learner = torch.tensor([1.2, 0.8, 2.0, 0.4], dtype=torch.float64).log()
    weights = correction_weights(cfg, learner, torch.zeros(4, dtype=torch.float64), torch.tensor([2, 2]))
    assert (weights is None) if expected is None else (weights is not None and weights.tolist() == pytest.approx(expected))
    assert int(num_corrected(cfg, weights)) == corrected


def test_sums_to_go():
    assert sums_to_go(torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([3, 0, 1])).tolist() == [7.0, 6.0, 4.0, 8.0]


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_estimators_average_to_the_exact_divergence(estimator):
    policy, reference = np.array([0.5, 0.3, 0.2]), np.array([0.45, 0.33, 0.22])
    exact = float(np.sum(policy * np.log(policy / reference)))
    estimate = kl_penalty(torch.tensor(np.log(policy)), torch.tensor(np.log(reference)), estimator).numpy()
    # k1 and k3 are unbiased; k2 only to second order
    assert float(np.sum(policy * estimate)) == pytest.approx(exact, rel=1e-9 if estimator != "k2" else 0.05)
    if estimator != "k1":
        assert (estimate >= 0).all()


def test_k2_has_the_gradient_of_the_true_kl_in_expectation():
    theta = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    reference = torch.log_softmax(torch.tensor([0.0, 0.1, -0.3], dtype=torch.float64), 0)
    logp = torch.log_softmax(theta, 0)
    (true_gradient,) = torch.autograd.grad((logp.exp() * (logp - reference)).sum(), theta, retain_graph=True)
    sampled = (logp.exp().detach() * kl_penalty(logp, reference, "k2")).sum()
    (gradient,) = torch.autograd.grad(sampled, theta)
    torch.testing.assert_close(gradient, true_gradient)


def test_weights_of_every_aggregation():
    lengths = torch.tensor([2, 0, 3])
    whole = Denominators(num_sequences=5, num_tokens=40, max_tokens=16)
    expected: dict[Aggregation, list[float]] = {
        "seq-mean-token-mean": [1 / (2 * 5)] * 2 + [1 / (3 * 5)] * 3,
        "token-mean": [1 / 40] * 5,
        "seq-mean-token-sum": [1 / 5] * 5,
        "seq-mean-token-sum-norm": [1 / (5 * 16)] * 5,
    }
    assert set(expected) == set(get_args(Aggregation))
    for aggregation, weights in expected.items():
        assert token_weights(lengths, aggregation, whole).tolist() == pytest.approx(weights)
