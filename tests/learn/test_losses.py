import math
from typing import get_args

import numpy as np
import pytest
import torch

from next_ray.config.algorithms import Aggregation
from next_ray.learn.losses import Denominators, clipped_surrogate, kl_penalty, token_weights


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
