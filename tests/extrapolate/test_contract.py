"""What every registered method owes its users, and what each claims to recover exactly.

A new method has to be registered and to state a claim in `CLAIMS`; the rest of the suite takes it up by itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch

from next_ray.delta.gauge import flipped
from next_ray.delta.trajectory import WeightTrajectory, from_adapters
from next_ray.errors import ExtrapolationError
from next_ray.extrapolate.materialize import to_adapter
from next_ray.extrapolate.methods.registry import METHODS, make
from next_ray.extrapolate.plan import Evaluator, Extrapolator, Plans, Setting, realize
from next_ray.types import LoraFactors, ModuleTriplets, Triplet
from tests.delta.trajectories import wandering_adapters
from tests.extrapolate.histories import Path, along, in_full, product, regauged

SHAPES = {"q": (24, 16), "down": (16, 40), "still": (12, 10)}
HORIZON = 3
COUNT = 9
QUICK: Mapping[str, Mapping[str, Any]] = {
    "next": {"hidden": 16, "fit_steps": 20, "refine_steps": 5},
    "next-no-global": {"hidden": 16, "fit_steps": 20, "refine_steps": 5},
    "next-no-local": {"hidden": 16, "fit_steps": 20, "refine_steps": 5},
    "next-released": {"hidden": 16, "steps": 20},
}
"""Settings under which a fitted method is quick; these tests are not about the quality of its fit."""

LEARNED = frozenset(QUICK)
SEEDED = LEARNED | {"dare"}


def lenient(plans: Plans) -> float:
    """An evaluator to whom all models are alike."""
    return 0.5


SETTING = Setting(HORIZON, seed=5, evaluator=lenient)


def quick(name: str) -> Extrapolator:
    return make(name, **QUICK.get(name, {}))


@pytest.fixture(scope="module")
def adapters() -> WeightTrajectory:
    """A drifting adapter whose module `still` was never trained: B = 0 throughout."""
    checkpoints = wandering_adapters(np.random.default_rng(0), SHAPES, rank=4, count=COUNT)
    for checkpoint in checkpoints:
        still = checkpoints[0]["still"]
        checkpoint["still"] = LoraFactors(still.a, np.zeros_like(still.b), still.scale)
    accuracies = [0.2, 0.24, 0.31, 0.3, 0.37, 0.44, 0.43, 0.5, 0.55]
    return from_adapters([10 * i for i in range(1, COUNT + 1)], checkpoints, accuracies, 0.18)


@pytest.fixture(scope="module", params=["adapters", "matrices"])
def trajectory(request: pytest.FixtureRequest, adapters: WeightTrajectory) -> WeightTrajectory:
    return adapters if request.param == "adapters" else in_full(adapters)


def realized(plans: Plans, trajectory: WeightTrajectory) -> dict[str, np.ndarray]:
    return {name: product(realize(plan, trajectory.modules[name], name)) for name, plan in plans.items()}


def result(
    method: Extrapolator, trajectory: WeightTrajectory, alpha: float | None = None, setting: Setting = SETTING
) -> dict[str, np.ndarray]:
    return realized(method.fit(trajectory, setting).at(method.alphas[-1] if alpha is None else alpha), trajectory)


def last_deltas(trajectory: WeightTrajectory) -> dict[str, np.ndarray]:
    weights = np.eye(trajectory.num_checkpoints)[-1]
    return {name: product(module.combine(weights)) for name, module in trajectory.modules.items()}


def assert_close(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], tolerance: float) -> None:
    assert set(found) == set(expected)
    for name, delta in expected.items():
        size = np.linalg.norm(delta)
        assert np.linalg.norm(found[name] - delta) <= tolerance * size, name


# What every method owes


@pytest.mark.parametrize("name", METHODS)
def test_the_name_is_the_registered_one_and_the_source_is_told(name: str) -> None:
    method = quick(name)
    assert method.name == name
    assert method.alphas
    if name not in ("no-op", "persistence", "linear-fit", "soup-uniform"):
        assert "arXiv" in (type(method).__doc__ or "")


@pytest.mark.parametrize("name", METHODS)
def test_the_neutral_alpha_gives_back_the_last_checkpoint(name: str, trajectory: WeightTrajectory) -> None:
    method = quick(name)
    if method.neutral is None:
        assert "no alpha" in (type(method).__doc__ or "").lower(), "the docstring must say why there is no neutral alpha"
        return
    plans = method.fit(trajectory, SETTING).at(method.neutral)
    assert {plan.checkpoint for plan in plans.values()} == {COUNT}
    assert_close(realized(plans, trajectory), last_deltas(trajectory), 1e-15)


@pytest.mark.parametrize("name", METHODS)
def test_a_neutral_adapter_is_the_last_checkpoint_bit_for_bit(name: str, adapters: WeightTrajectory) -> None:
    method = quick(name)
    if method.neutral is None:
        return
    found = to_adapter(method.fit(adapters, SETTING).at(method.neutral), adapters).adapter
    for module, history in adapters.modules.items():
        own = history.factors[-1]  # pyright: ignore[reportAttributeAccessIssue]
        assert found[module].a.tobytes() == own.a.tobytes()
        assert found[module].b.tobytes() == own.b.tobytes()


@pytest.mark.parametrize("name", METHODS)
def test_modules_shapes_and_numbers_are_sound(name: str, trajectory: WeightTrajectory) -> None:
    method = quick(name)
    fitted = method.fit(trajectory, SETTING)
    for alpha in (*method.alphas, -0.5):
        plans = fitted.at(alpha)
        assert list(plans) == list(trajectory.modules)
        for module, delta in realized(plans, trajectory).items():
            assert delta.shape == SHAPES[module]
            assert delta.dtype == np.float64
            assert np.isfinite(delta).all()
    assert all(isinstance(text, str) for text in fitted.notes.values())


@pytest.mark.parametrize("name", METHODS)
def test_a_module_that_was_never_trained_is_not_moved_by_a_single_bit(name: str, trajectory: WeightTrajectory) -> None:
    method = quick(name)
    fitted = method.fit(trajectory, SETTING)
    for alpha in method.alphas:
        assert not realized(fitted.at(alpha), trajectory)["still"].any()


@pytest.mark.parametrize("name", METHODS)
def test_the_gauge_of_the_factors_does_not_matter(name: str, adapters: WeightTrajectory) -> None:
    """float32 factors move by 1e-7 in another gauge; a fit of many steps carries that further than a sum does."""
    method = quick(name)
    expected = result(method, adapters)
    assert_close(result(method, regauged(adapters, 1)), expected, 2e-3 if name in LEARNED else 2e-5)


@pytest.mark.parametrize("name", METHODS)
def test_the_signs_of_triplets_do_not_matter(name: str, adapters: WeightTrajectory) -> None:
    method = quick(name)
    rng = np.random.default_rng(2)

    def turned(triplet: Triplet) -> Triplet:
        return flipped(triplet) if rng.random() < 0.5 else triplet

    def turned_all(module: ModuleTriplets) -> ModuleTriplets:
        target = None if module.target is None else turned(module.target)
        return replace(module, global_=turned(module.global_), local=turned(module.local), target=target)

    plain = {module: history.triplets(HORIZON) for module, history in adapters.modules.items()}
    turned_round = {module: [turned_all(m) for m in triplets] for module, triplets in plain.items()}
    expected = result(method, replace(adapters, computed={HORIZON: plain}))
    assert_close(result(method, replace(adapters, computed={HORIZON: turned_round})), expected, 1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_same_seed_same_result_whatever_the_order_of_modules_and_the_global_random_state(name: str, trajectory: WeightTrajectory) -> None:
    method = quick(name)
    first = result(method, trajectory)
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    try:
        backwards = replace(trajectory, modules=dict(sorted(trajectory.modules.items(), key=lambda item: item[0], reverse=True)))
        second = result(quick(name), backwards)
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
    assert set(first) == set(second)
    assert all(np.array_equal(first[module], second[module]) for module in first)
    other = result(method, trajectory, setting=replace(SETTING, seed=6))
    assert (name in SEEDED) == any(not np.array_equal(first[module], other[module]) for module in first)


@pytest.mark.parametrize("name", METHODS)
def test_too_short_a_trajectory_is_refused_with_the_number_it_needs(name: str, adapters: WeightTrajectory) -> None:
    method = quick(name)
    enough = method.needs(HORIZON).checkpoints
    assert enough >= 1
    result(method, adapters.truncated(enough))
    if enough > 1:
        with pytest.raises(ExtrapolationError, match=f"needs at least {enough} checkpoint.* given {enough - 1}"):
            method.fit(adapters.truncated(enough - 1), SETTING)


@pytest.mark.parametrize(
    ("name", "settings", "horizon", "said"),
    [
        (
            "two-point",
            {"start": 99},
            1,
            "needs at least 100 checkpoints with start=99 and was given 3. Give more checkpoints or a smaller start.",
        ),
        (
            "linear-fit",
            {"window": 9},
            2,
            "needs at least 9 checkpoints with window=9 and was given 3. Give more checkpoints or a smaller window.",
        ),
        (
            "wsm-uniform",
            {"count": 5},
            2,
            "needs at least 5 checkpoints with count=5 and was given 3. Give more checkpoints or a smaller count.",
        ),
        (
            "soup-uniform",
            {"count": 5},
            2,
            "needs at least 5 checkpoints with count=5 and was given 3. Give more checkpoints or a smaller count.",
        ),
        (
            "two-point",
            {"start": 2},
            9,
            "needs at least 9 checkpoints at a horizon of 9 and was given 3. Give more checkpoints or a shorter horizon.",
        ),
        ("two-point", {}, 9, "needs at least 9 checkpoints at a horizon of 9 and was given 3. Give more checkpoints or a shorter horizon."),
        ("next", {}, 2, "needs at least 4 checkpoints at a horizon of 2 and was given 3. Give more checkpoints or a shorter horizon."),
    ],
)
def test_too_short_a_trajectory_names_what_asks_for_so_many(
    name: str, settings: dict[str, int], horizon: int, said: str, adapters: WeightTrajectory
) -> None:
    with pytest.raises(ExtrapolationError) as raised:
        make(name, **settings).fit(adapters.truncated(3), Setting(horizon))
    assert str(raised.value) == f"{name} {said}"


def test_no_shorter_horizon_is_advised_where_there_is_none(adapters: WeightTrajectory) -> None:
    with pytest.raises(ExtrapolationError, match=r"at a horizon of 1 and was given 1\. Give more checkpoints\.$"):
        make("next").fit(adapters.truncated(1), Setting(1))


@pytest.mark.parametrize("name", METHODS)
def test_missing_accuracies_and_evaluator_are_refused_with_the_reason(name: str, adapters: WeightTrajectory) -> None:
    method = quick(name)
    needs = method.needs(HORIZON)
    bare, alone = replace(adapters, accuracies=None), replace(SETTING, evaluator=None)
    if needs.accuracies:
        with pytest.raises(ExtrapolationError, match="accuracy per checkpoint, because"):
            method.fit(bare, SETTING)
    if needs.evaluator:
        with pytest.raises(ExtrapolationError, match="evaluator, because"):
            method.fit(adapters, alone)
    if not needs.accuracies and not needs.evaluator:
        result(method, bare, setting=alone)


@pytest.mark.parametrize("name", METHODS)
def test_an_alpha_without_end_is_refused(name: str, adapters: WeightTrajectory) -> None:
    if name == "no-op":
        return
    fitted = quick(name).fit(adapters, SETTING)
    with pytest.raises(ExtrapolationError, match="not finite"), np.errstate(invalid="ignore", over="ignore"):
        fitted.at(1e400)


# What each method claims to recover


@dataclass(frozen=True)
class Claim:
    """On this trajectory the method gives exactly this model, up to `tolerance` of its size."""

    trajectory: WeightTrajectory
    alpha: float
    expected: Mapping[str, np.ndarray]
    settings: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = 2e-6
    evaluator: Evaluator = lenient


UNEVEN = (10, 20, 40, 50, 80, 90)
"""Training steps with gaps."""


def matrices(seed: int, rank: int = 2, shapes: Mapping[str, tuple[int, int]] = SHAPES) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(o, rank)) @ rng.normal(size=(rank, i)) for name, (o, i) in shapes.items()}


def straight(offset: bool, steps: tuple[int, ...] = UNEVEN) -> tuple[dict[str, Path], WeightTrajectory]:
    """D(t) = P + t S in every entry; P = 0 without `offset`."""
    offsets, slopes = matrices(1), matrices(2)
    paths: dict[str, Path] = {n: (lambda t, n=n: (offsets[n] if offset else 0.0) + t / 50 * slopes[n]) for n in SHAPES}
    return paths, along(paths, steps)


def ahead(steps: tuple[int, ...], alpha: float) -> float:
    """The step that alpha horizons beyond the last checkpoint mean."""
    return steps[-1] + alpha * (steps[-1] - steps[-1 - HORIZON])


def straight_on(offset: bool, alpha: float, **settings: Any) -> Claim:
    paths, trajectory = straight(offset)
    return Claim(trajectory, alpha, {n: path(ahead(UNEVEN, alpha)) for n, path in paths.items()}, settings)


def standing_still() -> Claim:
    where = matrices(3)
    return Claim(along({n: (lambda t, n=n: where[n]) for n in where}, UNEVEN), 1.0, where)


def alike(**settings: Any) -> Claim:
    """Merging identical checkpoints gives the checkpoint."""
    claim = standing_still()
    return replace(claim, settings=settings, trajectory=replace(claim.trajectory, accuracies=(0.1,) * len(UNEVEN)))


def wandering() -> WeightTrajectory:
    return from_adapters(
        UNEVEN, wandering_adapters(np.random.default_rng(4), SHAPES, rank=4, count=len(UNEVEN)), (0.1, 0.3, 0.2, 0.5, 0.4, 0.4)
    )


def decayed(decay: Callable[[np.ndarray], np.ndarray]) -> Claim:
    """WSM: the merge is training with update i of the last three scaled by w_i."""
    trajectory = wandering()
    scales = decay(np.arange(1, HORIZON + 1) / (HORIZON + 1))
    expected = {}
    for name, module in trajectory.modules.items():
        deltas = [product(module.combine(row)) for row in np.eye(len(UNEVEN))][-HORIZON - 1 :]
        expected[name] = deltas[0] + sum(w * (later - earlier) for w, earlier, later in zip(scales, deltas, deltas[1:], strict=False))
    return Claim(trajectory, 1.0, expected)


def best_of_all() -> Claim:
    """A judge who knows a target: the checkpoint at 50 is as far above it as the one at 80 is below, the others are far away."""
    target, off = matrices(5), matrices(6)
    shift = {10: 50.0, 20: 40.0, 40: -30.0, 50: 0.5, 80: -0.5, 90: 60.0}
    trajectory = along(
        {n: (lambda t, n=n: target[n] + shift[int(t)] * off[n]) for n in SHAPES}, UNEVEN, accuracies=(0.1, 0.2, 0.3, 0.8, 0.9, 0.15)
    )

    def judge(plans: Plans) -> float:
        return -sum(float(np.linalg.norm(delta - target[n])) for n, delta in realized(plans, trajectory).items())

    return Claim(trajectory, 1.0, target, evaluator=judge, tolerance=1e-5)


def few_rows() -> Claim:
    """Three rows of each module moved; a quarter of the rows holds them."""
    where = matrices(7)
    for delta in where.values():
        delta[3:] = 0.0
    return Claim(
        along({n: (lambda t, n=n: where[n] * t) for n in where}, UNEVEN),
        1.5,
        {n: 1.5 * 90 * d for n, d in where.items()},
        {"fraction": 0.25},
    )


def rank_one(alpha: float) -> Claim:
    where = matrices(8, rank=1)
    return Claim(along({n: (lambda t, n=n: where[n] * t) for n in where}, UNEVEN), alpha, {n: alpha * 90 * d for n, d in where.items()})


def accuracy_in_step(alpha: float, accuracy: float | None = None) -> Claim:
    """sigma_1 u_1 = (a + b y) x and the accuracy y rises by 0.005 a step."""
    where = matrices(9, rank=1)
    accuracies = [0.1 + 0.005 * t for t in UNEVEN]
    trajectory = along({n: (lambda t, n=n: where[n] * (2 + 3 * (0.1 + 0.005 * t))) for n in where}, UNEVEN, accuracies=accuracies)
    y = 0.1 + 0.005 * ahead(UNEVEN, alpha) if accuracy is None else accuracies[-1] + alpha * (accuracy - accuracies[-1])
    return Claim(trajectory, alpha, {n: d * (2 + 3 * y) for n, d in where.items()}, {"accuracy": accuracy})


EVEN = tuple(range(10, 100, 10))


def one_direction(
    size: Callable[[float], float], shapes: Mapping[str, tuple[int, int]] = SHAPES, tolerance: float = 1e-5, **settings: Any
) -> Claim:
    """W_t = size(t) u v^T on evenly spaced checkpoints."""
    where = matrices(10, rank=1, shapes=shapes)
    unit = {n: d / np.linalg.norm(d) for n, d in where.items()}
    paths: dict[str, Path] = {n: (lambda t, n=n: unit[n] * size(t)) for n in unit}
    return Claim(along(paths, EVEN), 1.0, {n: path(120) for n, path in paths.items()}, settings, tolerance)


def steady(t: float) -> float:
    """T is three times L."""
    return t / 30


def growing(t: float) -> float:
    """T is a fixed multiple of G."""
    return 1.1 ** (t / 10)


CLAIMS: Mapping[str, list[Callable[[], Claim]]] = {
    "next": [lambda: one_direction(steady, fit_steps=30, refine_steps=10)],
    "next-no-global": [lambda: one_direction(steady, fit_steps=30, refine_steps=10)],
    "next-no-local": [lambda: one_direction(growing, fit_steps=30, refine_steps=10)],
    "next-released": [lambda: one_direction(steady, {"wide": (128, 128)}, tolerance=0.005)],
    "no-op": [standing_still],
    "persistence": [lambda: straight_on(True, 1.5), lambda: straight_on(False, 0.5)],
    "two-point": [
        lambda: straight_on(True, 1.5),
        lambda: straight_on(True, 1.5, start=2),
        lambda: straight_on(False, 0.5, start=0),
    ],
    "linear-fit": [
        lambda: straight_on(True, 1.5),
        lambda: straight_on(True, 1.5, window=3),
        lambda: straight_on(True, 0.5, through="line"),
        lambda: straight_on(True, 0.5, through="line", window=4),
    ],
    "relex": [lambda: straight_on(False, 1.5), lambda: straight_on(False, -0.5)],
    "alpharl": [lambda: accuracy_in_step(1.5), lambda: accuracy_in_step(0.5, accuracy=0.9)],
    "rank1": [lambda: rank_one(1.0), lambda: rank_one(1.5)],
    "expo": [lambda: replace(rank_one(1.3), alpha=0.3)],
    "wsm-uniform": [alike, lambda: decayed(lambda x: 1 - x)],
    "wsm-cosine": [alike, lambda: decayed(lambda x: (1 + np.cos(np.pi * x)) / 2)],
    "wsm-sqrt": [alike, lambda: decayed(lambda x: 1 - np.sqrt(x))],
    "soup-uniform": [alike, lambda: alike(count=2)],
    "soup-greedy": [alike, best_of_all],
    "dare": [lambda: replace(rank_one(1.5), settings={"probability": 0.0})],
    "key-neurons": [few_rows, lambda: replace(rank_one(1.0), settings={"fraction": 1.0})],
}
"""Method name to what it recovers exactly. A method without a claim has no place in the registry."""


def test_every_method_makes_a_claim() -> None:
    assert set(CLAIMS) == set(METHODS)
    assert all(CLAIMS.values())


@pytest.mark.parametrize("kind", ["adapters", "matrices"])
@pytest.mark.parametrize(("name", "number"), [(name, n) for name, claims in CLAIMS.items() for n in range(len(claims))])
def test_the_claim_holds(name: str, number: int, kind: str) -> None:
    claim = CLAIMS[name][number]()
    trajectory = claim.trajectory if kind == "adapters" else in_full(claim.trajectory)
    method = make(name, **claim.settings)
    found = result(method, trajectory, claim.alpha, Setting(HORIZON, 0, claim.evaluator))
    assert_close(found, claim.expected, claim.tolerance)
