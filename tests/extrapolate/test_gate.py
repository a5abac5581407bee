import math
from itertools import product

import numpy as np
import pytest

from next_ray.config import GateSection
from next_ray.extrapolate.gate import decide, max_t_p_values


def rewards(rng: np.random.Generator, chance: np.ndarray, samples: int = 4) -> np.ndarray:
    return (rng.random((len(chance), samples)) < chance[:, None]).astype(float)


def test_exact_p_values_equal_a_brute_force_enumeration():
    rng = np.random.default_rng(0)
    differences = rng.integers(-2, 4, size=(3, 7)) / 4
    observed = [d.sum() / math.sqrt((d**2).sum()) for d in differences]
    largest = [
        max(sum(s * x for s, x in zip(signs, d, strict=True)) / math.sqrt((d**2).sum()) for d in differences)
        for signs in product([-1, 1], repeat=7)
    ]
    expected = [sum(t >= o - 1e-9 for t in largest) / 2**7 for o in observed]
    np.testing.assert_allclose(max_t_p_values(differences, seed=0), expected)


def test_monte_carlo_agrees_with_the_exact_test_on_twenty_prompts():
    """All 2^20 flips of one candidate, counted by convolving the distribution of the sum of integers +-x."""
    steps = np.random.default_rng(1).integers(-3, 6, size=20)
    counts = {0: 1}
    for x in steps:
        grown: dict[int, int] = {}
        for total, ways in counts.items():
            for flipped in (total + int(x), total - int(x)):
                grown[flipped] = grown.get(flipped, 0) + ways
        counts = grown
    exact = sum(ways for total, ways in counts.items() if total >= steps.sum()) / 2**20
    assert 0.001 < exact < 0.2
    assert max_t_p_values(steps[None, :] / 4, seed=3)[0] == pytest.approx(exact, abs=5 * math.sqrt(exact / 9999))


def test_four_prompts_by_hand():
    """Four wins of four: only the untouched signs reach the sum, p = 1/16, above 5 %. With five prompts p = 1/32 passes."""
    cfg = GateSection()
    four = decide([[0], [0], [0], [0]], {"next@1": [[1], [1], [1], [1]]}, cfg, seed=0)
    assert four.accepted is None
    assert four.rows[0].p_value == 1 / 16
    assert "chance" in four.reason
    five = decide([[0]] * 5, {"next@1": [[1]] * 5}, cfg, seed=0)
    assert five.accepted == "next@1"
    assert five.rows[0].p_value == 1 / 32
    assert (five.baseline_accuracy, five.rows[0].accuracy, five.rows[0].difference) == (0.0, 1.0, 1.0)


@pytest.mark.parametrize("num_candidates", [1, 6])
def test_false_accepts_stay_at_the_level(num_candidates):
    """Nothing is better: over 400 nulls at level 0.1, at most 0.1 plus three standard errors; not vacuous either."""
    cfg, rng = GateSection(level=0.1), np.random.default_rng(4)
    accepted = 0
    for seed in range(400):
        chance = rng.beta(0.5, 0.5, size=24)
        candidates = {f"c{i}": rewards(rng, chance) for i in range(num_candidates)}
        accepted += decide(rewards(rng, chance), candidates, cfg, seed).accepted is not None
    assert 0.03 <= accepted / 400 <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / 400)


def test_real_gains_are_found_and_harm_never_is():
    cfg, rng = GateSection(), np.random.default_rng(5)
    found = 0
    for seed in range(50):
        chance = rng.uniform(0.1, 0.7, size=128)
        candidates = {
            "better": rewards(rng, chance + 0.12),
            "same": rewards(rng, chance),
            "worse": rewards(rng, chance - 0.1),
        }
        decision = decide(rewards(rng, chance), candidates, cfg, seed)
        found += decision.accepted == "better"
        assert decision.accepted != "worse"
    assert found >= 48


def test_ties_go_to_the_smaller_p_then_to_the_first_named():
    base = np.zeros((20, 2))
    steady, patchy = np.zeros((20, 2)), np.zeros((20, 2))
    steady[:16, 0] = 1
    patchy[:8] = 1
    decision = decide(base, {"patchy": patchy, "steady": steady, "steady-too": steady}, GateSection(level=0.2), seed=0)
    assert decision.rows[0].difference == decision.rows[1].difference
    assert decision.rows[1].p_value < decision.rows[0].p_value
    assert decision.accepted == "steady"


def test_min_gain_and_identical_candidates():
    base = np.zeros((40, 4))
    little = base.copy()
    little[:20, 0] = 1
    refused = decide(base, {"c": little}, GateSection(min_gain=0.2), seed=0)
    assert refused.accepted is None
    assert "gate.min_gain" in refused.reason
    assert decide(base, {"c": little}, GateSection(min_gain=0.125), seed=0).accepted == "c"
    same = decide(base, {"c": base}, GateSection(), seed=0)
    assert (same.accepted, same.rows[0].p_value) == (None, 1.0)
    assert "No candidate is better" in same.reason


def test_deterministic_for_a_seed():
    rng = np.random.default_rng(6)
    chance = rng.uniform(size=100)
    base, candidate = rewards(rng, chance), rewards(rng, chance + 0.03)
    assert decide(base, {"c": candidate}, GateSection(), 7) == decide(base, {"c": candidate}, GateSection(), 7)


def test_without_candidates_there_is_no_jump():
    decision = decide([[1.0], [0.0]], {}, GateSection(), 0)
    assert (decision.accepted, decision.rows, decision.baseline_accuracy) == (None, (), 0.5)


def test_untested_mode_takes_the_fixed_candidate_whatever_it_shows():
    cfg = GateSection(kind="none", fixed="next@1.5")
    measured = decide([[1.0]], {"next@1.5": [[0.0]]}, cfg, 0)
    assert measured.accepted == "next@1.5"
    assert measured.rows[0].difference == -1.0
    unmeasured = decide([], {"next@1.5": []}, cfg, 0)
    assert unmeasured.accepted == "next@1.5"
    assert unmeasured.baseline_accuracy is None
    missing = decide([[1.0]], {"two-point@1": [[1.0]]}, cfg, 0)
    assert missing.accepted is None
    assert "next@1.5" in missing.reason


@pytest.mark.parametrize(
    ("base", "candidate", "message"),
    [
        ([[1.0], [0.0]], [[1.0]], "1 prompts"),
        ([[1.0, 0.0], [0.0]], [[1.0], [1.0]], "same number of samples"),
        ([[1.0], [0.0]], [[float("nan")], [1.0]], "NaN"),
        ([1.0, 0.0], [[1.0], [1.0]], "shape"),
    ],
)
def test_malformed_matrices_are_named(base, candidate, message):
    with pytest.raises(ValueError, match=message):
        decide(base, {"c": candidate}, GateSection(), 0)
