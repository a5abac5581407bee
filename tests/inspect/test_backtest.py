from dataclasses import dataclass, replace

import numpy as np
import pytest

from next_ray.delta.factors import FactorPair
from next_ray.errors import ExtrapolationError
from next_ray.extrapolate.plan import Dropout, Fitted, ModulePlan, Needs, realize
from next_ray.inspect.backtest import backtest, origins
from next_ray.inspect.errors import ModuleErrors
from next_ray.inspect.movement import movement
from next_ray.types import Triplet
from tests.inspect.trajectories import as_dense, line, matrices, random_walk, still

NAME = "model.layers.0.mlp.down_proj"


@dataclass(frozen=True)
class Repeat:
    """W_c + alpha (W_c - W_{c-k})."""

    name: str = "repeat"
    neutral: float | None = 0.0
    forecast: float | None = 1.0
    alphas: tuple[float, ...] = (3.0,)
    least: int = 1

    def needs(self, horizon: int) -> Needs:
        return Needs(max(horizon, self.least))

    def fit(self, trajectory, setting) -> Fitted:
        count = trajectory.num_checkpoints
        direction = np.zeros(count)
        direction[-1] = 1.0
        if count > setting.horizon:
            direction[-1 - setting.horizon] = -1.0
        unit = np.eye(count)[-1]
        return Fitted(lambda alpha: dict.fromkeys(trajectory.modules, ModulePlan(unit + alpha * direction)))


@dataclass(frozen=True)
class Refuses(Repeat):
    def fit(self, trajectory, setting) -> Fitted:
        raise ExtrapolationError("no module has moved")


@dataclass(frozen=True)
class NeedsMore(Repeat):
    accuracies: bool = False
    evaluator: bool = False

    def needs(self, horizon: int) -> Needs:
        return Needs(self.least, self.accuracies, self.evaluator)


def moves(weights):
    return {name: movement(module) for name, module in weights.modules.items()}


def full(delta):
    return delta.left @ delta.right if isinstance(delta, FactorPair) else delta


def plan_cases():
    rng = np.random.default_rng(5)
    u, v = (x / np.linalg.norm(x) for x in (rng.normal(size=9), rng.normal(size=14)))
    triplets = (Triplet(0.7, u.astype(np.float32), v.astype(np.float32)), Triplet(1.3, -u.astype(np.float32), v[::-1].astype(np.float32)))
    rows = rng.normal(size=9)
    last, mixed = np.array([0.0, 0.0, 1.0]), rng.normal(size=3)
    return [
        ModulePlan(last),
        ModulePlan(mixed),
        ModulePlan(last, triplets),
        ModulePlan(mixed, triplets, rows),
        ModulePlan(mixed, row_scale=rows),
    ]


@pytest.mark.parametrize("kind", ["factors", "dense"])
@pytest.mark.parametrize("plan", plan_cases())
def test_errors_equal_those_of_the_realized_matrices(plan, kind):
    weights = random_walk(count=5)
    deltas = matrices(weights, NAME)
    history = (weights if kind == "factors" else as_dense(weights)).modules[NAME]
    expected = np.sum((full(realize(plan, history.truncated(3))) - deltas[4]) ** 2)
    errors = ModuleErrors(history, movement(history))
    assert errors.square(plan, 5) == pytest.approx(expected, rel=1e-6)
    assert errors.square(plan, 5) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("scaled", [False, True])
def test_random_removal_is_scored_by_its_mean(scaled):
    weights = random_walk(count=4)
    history, deltas = weights.modules[NAME], matrices(weights, NAME)
    rows = np.linspace(0.5, 2, 9) if scaled else None
    found = ModuleErrors(history, movement(history)).square(ModulePlan(np.array([0.0, 1.0]), row_scale=rows, drop=Dropout(0.6, 0)), 4)
    draws = [
        np.sum(
            (
                full(realize(ModulePlan(np.array([0.0, 1.0]), row_scale=rows, drop=Dropout(0.6, seed)), history.truncated(2), NAME))
                - deltas[3]
            )
            ** 2
        )
        for seed in range(3000)
    ]
    assert found == pytest.approx(np.mean(draws), abs=4 * np.std(draws) / np.sqrt(3000))


def test_a_perfect_forecast_has_no_error_where_the_deltas_are_large_and_the_move_is_small():
    weights = line(count=8)
    history = weights.modules[NAME]
    plan = ModulePlan(np.array([0, 0, 0, 0, 0, -1.0, 2.0]))  # W_7 + (W_7 - W_6) = W_8
    square = ModuleErrors(history, movement(history)).square(plan, 8)
    assert np.sqrt(square / movement(history).square_distance(8, 7)) < 1e-6


def test_origins_as_documented():
    assert origins(range(1, 15 + 1), 5) == (5, 6, 7, 8, 9, 10)
    assert origins(range(1, 3 + 1), 1) == (2,)
    assert origins(range(1, 2 + 1), 1) == ()
    assert origins(range(1, 50 + 1), 10) == (30, 32, 34, 36, 38, 40)
    assert origins(range(1, 14 + 1), 4) == (5, 6, 7, 8, 9, 10)


def test_a_horizon_that_would_reach_back_to_a_distant_base_is_not_tried():
    assert origins(range(27, 63, 3), 4) == (5, 6, 7, 8)
    assert origins(range(3, 39, 3), 4) == (4, 5, 6, 7, 8)
    assert origins([27, 30, 33], 1) == (2,)


@pytest.mark.parametrize("horizon", [1, 2, 5, 6, 13, 20])
def test_some_origin_has_the_future_of_another_in_its_past_wherever_that_is_possible(horizon):
    for count in range(3, 61):
        found = list(origins(range(1, count + 1), horizon))
        assert len(found) <= 6 and found == sorted(set(found)) and all(max(horizon, 2) <= o <= count - horizon for o in found)
        if count - 2 * horizon >= max(horizon, 2):
            assert found[-1] == count - horizon and found[0] + horizon <= found[-1]


@pytest.mark.parametrize("kind", ["factors", "dense"])
def test_pooled_and_mean_errors_equal_dense_arithmetic(kind):
    weights = random_walk(count=6)
    deltas = {name: matrices(weights, name) for name in weights.modules}
    judged = weights if kind == "factors" else as_dense(weights)
    (result,) = backtest(judged, [Repeat()], moves(judged), 2).methods
    assert {score.origin for score in result.scores} == {2, 3, 4}
    score = next(s for s in result.scores if (s.origin, s.alpha) == (3, 0.5))
    miss = {n: (d[2] + 0.5 * (d[2] - d[0])) - d[4] for n, d in deltas.items()}
    move = {n: d[4] - d[2] for n, d in deltas.items()}
    ratios = {n: np.linalg.norm(miss[n]) / np.linalg.norm(move[n]) for n in deltas}
    assert score.modules == pytest.approx(ratios, rel=1e-6)
    assert score.mean == pytest.approx(np.mean(list(ratios.values())), rel=1e-6)
    assert score.pooled == pytest.approx(
        np.sqrt(sum(np.sum(m**2) for m in miss.values()) / sum(np.sum(m**2) for m in move.values())), rel=1e-6
    )
    assert result.groups(0.5)["q"] == pytest.approx(
        np.median([np.mean([s.modules[n] or np.nan for n in deltas if n.endswith("q_proj")]) for s in result.at(0.5)])
    )


def test_alpha_0_is_no_op_and_the_line_is_foretold_exactly():
    weights = line()
    (result,) = backtest(weights, [Repeat()], moves(weights), 5).methods
    assert [score.pooled for score in result.at(0.0)] == pytest.approx([1.0] * 6, abs=1e-9)
    assert result.forecast_error == pytest.approx(0.0, abs=1e-6)
    assert result.best_alpha == 1.0
    assert result.error(2.0) == pytest.approx(1.0, abs=1e-5)


def test_tuned_alpha_never_sees_the_future_it_is_judged_by():
    weights = random_walk(count=12)
    (result,) = backtest(weights, [Repeat()], moves(weights), 2).methods
    for score in result.tuned(2):
        past = {a: np.median([s.pooled for s in result.at(a) if s.origin + 2 <= score.origin]) for a in result.alphas}
        assert past[score.alpha] == min(past.values())
    assert min(score.origin for score in result.tuned(2)) == min(score.origin for score in result.scores) + 2


def test_methods_say_why_they_were_not_tried():
    weights = random_walk(count=6)
    methods = [NeedsMore("a", accuracies=True), NeedsMore("b", evaluator=True), NeedsMore("c", least=5), Refuses("d"), Repeat("e", least=3)]
    found = {m.name: m for m in backtest(weights, methods, moves(weights), 2).methods}
    assert "accuracy" in (found["a"].skipped or "")
    assert "evaluation" in (found["b"].skipped or "")
    assert found["c"].skipped == "needs 5 checkpoints; 4 are left when the last 2 are hidden"
    assert found["d"].skipped == "no module has moved"
    assert found["e"].skipped is None and {s.origin for s in found["e"].scores} == {3, 4}


def test_nothing_that_moved_is_nothing_to_foretell():
    weights = still()
    result = backtest(weights, [Repeat()], moves(weights), 1)
    assert result.origins == () and result.methods[0].scores == () and "nothing moved" in (result.methods[0].skipped or "")


def test_a_module_that_holds_still_has_no_error_and_does_not_spoil_the_others():
    weights = random_walk(count=5)
    frozen = line(count=5).modules[NAME].factors[0]  # pyright: ignore[reportAttributeAccessIssue]
    modules = {**weights.modules, NAME: type(weights.modules[NAME])([frozen] * 5)}  # pyright: ignore[reportCallIssue]
    mixed = replace(weights, modules=modules)
    (result,) = backtest(mixed, [Repeat()], moves(mixed), 1).methods
    score = result.at(1.0)[-1]
    assert score.modules[NAME] is None and np.isfinite(score.mean)
    assert result.groups(1.0)["down"] is None
