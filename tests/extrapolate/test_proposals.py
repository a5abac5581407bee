from dataclasses import replace

import numpy as np
import pytest

from next_ray.config import ONLINE_METHODS
from next_ray.delta.trajectory import WeightTrajectory, from_adapters
from next_ray.extrapolate.methods.registry import METHODS, make
from next_ray.extrapolate.plan import Setting
from next_ray.extrapolate.proposals import candidate_name, make_candidates
from next_ray.types import LoraFactors
from tests.delta.trajectories import dense, wandering_adapters

SHAPES = {"q": (20, 16), "down": (16, 28)}
RANK = 4


def trajectory(count: int) -> tuple[WeightTrajectory, list[dict[str, LoraFactors]]]:
    adapters = wandering_adapters(np.random.default_rng(5), SHAPES, RANK, count)
    return from_adapters(range(10, 10 * count + 10, 10), adapters), adapters


def test_names() -> None:
    assert candidate_name("next", 1.5) == "next@1.5"
    assert candidate_name("two-point", 1.0) == "two-point@1"


def test_a_running_job_has_every_method_that_makes_adapters_and_evaluates_nothing_itself() -> None:
    """The accuracies that AlphaRL asks for are those of training."""
    accuracies = tuple(np.linspace(0.3, 0.6, 6))

    def fits(name: str) -> bool:
        method, (bare, _) = make(name), trajectory(6)
        needs, seen = method.needs(2), replace(bare, accuracies=accuracies)
        if needs.evaluator or name == "no-op":
            return False
        return all(plan.drop is None for plan in method.fit(seen, Setting(2)).at(method.alphas[0]).values())

    assert set(ONLINE_METHODS) == {name for name in METHODS if fits(name)}


def test_two_point_is_exact_at_twice_the_rank_and_its_alpha_counts_horizons() -> None:
    seen, adapters = trajectory(3)
    (made,) = make_candidates([("two-point", 1.5)], seen, Setting(2), {}, rank=2 * RANK).adapters
    assert made is not None and made.truncation_error == 0.0
    for name in SHAPES:
        expected = dense(adapters[2][name]) + 1.5 * (dense(adapters[2][name]) - dense(adapters[0][name]))
        np.testing.assert_allclose(dense(made.adapter[name]), expected, atol=1e-6 * np.abs(expected).max())


def test_a_sum_of_checkpoints_survives_rounding_to_bfloat16() -> None:
    """A long reach is a difference of two large products; in bfloat16 its error must be that of the result, not of the terms."""
    import torch

    seen, adapters = trajectory(2)
    (made,) = make_candidates([("two-point", 20.0)], seen, Setting(1), {}, rank=2 * RANK).adapters
    assert made is not None
    f = made.adapter["q"]
    a, b = (torch.from_numpy(x).bfloat16().double().numpy() for x in (f.a, f.b))
    expected = dense(adapters[1]["q"]) + 20.0 * (dense(adapters[1]["q"]) - dense(adapters[0]["q"]))
    assert np.linalg.norm(f.scale * b @ a - expected) < 2.0**-8 * np.linalg.norm(expected)


def test_a_method_that_lacks_checkpoints_abstains_with_the_number_and_the_others_go_on() -> None:
    seen, _ = trajectory(2)
    made = make_candidates([("next", 1.0), ("two-point", 1.0)], seen, Setting(1), {}, rank=2 * RANK)
    assert made.adapters[0] is None and made.adapters[1] is not None
    assert "3" in made.abstained["next"]


@pytest.mark.parametrize("name", ONLINE_METHODS)
def test_every_method_makes_an_adapter_of_the_rank_that_engines_hold(name: str) -> None:
    seen, _ = trajectory(6)
    (made,) = make_candidates([(name, make(name).alphas[0])], seen, Setting(2), {}, rank=2 * RANK).adapters
    if made is not None:
        assert max(f.rank for f in made.adapter.values()) <= 2 * RANK
        assert all(np.isfinite(f.a).all() and np.isfinite(f.b).all() for f in made.adapter.values())
