"""The loop over fakes: order, versions, schedule, jumps, and resuming from every checkpoint."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest

from next_ray.config import Config, LearnerSection
from next_ray.data.splits import Splits
from next_ray.errors import TrainingError
from next_ray.loop import TrainingLoop
from next_ray.ports import Stages
from next_ray.progress import Progress, Schedule, resumed
from next_ray.stopping import Stop
from next_ray.types import CheckpointKind, LearnerState, Manifest, Ref
from tests.fakes import FakeArchive, FakeLearner, FakeReport, FakeRewards, FakeRollout, FakeTrajectory, make_adapter, make_prompts, skill_of

RATE = 0.02


def config(steps: int = 12, **extrapolation: Any) -> Config:
    extra = {"interval_steps": 2, "checkpoints": 3, "horizon": 1, "gate": {"samples": 4}, **extrapolation}
    return Config.model_validate(
        {
            "run": {"name": "t", "steps": steps, "seed": 3},
            "rollout": {"prompts_per_step": 8, "samples_per_prompt": 4},
            "data": {"gate_prompts": 64, "test_prompts": 64},
            "extrapolation": extra,
        }
    )


@dataclass
class World:
    """One driver's fakes; `reborn` is the next driver on the same archive."""

    config: Config
    gains: dict[str, float] = field(default_factory=dict)
    archive: FakeArchive = field(default_factory=FakeArchive)
    stop: Stop | None = None

    def loop(self, at: tuple[Manifest, LearnerState] | None = None) -> TrainingLoop:
        is_full = self.config.learner.mode == "full"
        self.rollout, self.trajectory, self.report = FakeRollout(), FakeTrajectory(self.gains, is_full), FakeReport()
        self.learner = FakeLearner.restored(at[1], RATE) if at else FakeLearner(RATE)
        self.learner.is_full = is_full
        progress = resumed(at[0], Schedule(self.config.extrapolation, self.config.run.steps)) if at else Progress()
        stages = Stages(self.rollout, FakeRewards(), self.learner, self.archive, self.trajectory)
        splits = Splits(train=make_prompts(21), gate=make_prompts(64, "g"), test=make_prompts(64, "t"))
        current = Ref(at[1].adapter) if at else None
        return TrainingLoop(self.config, splits, stages, self.report, progress, current, self.stop)


def run(loop: TrainingLoop) -> None:
    async def go() -> None:
        await loop.rebuild_trajectory()
        await loop.run()

    asyncio.run(go())


def test_a_step_goes_from_prompts_to_the_next_version() -> None:
    world = World(config(steps=2, enabled=False))
    run(world.loop())
    assert world.rollout.log == ["generate 8 at [0]", "load 1", "generate 8 at [1]", "load 2"]
    assert [r.step for r in world.report.steps] == [1, 2]
    assert {"rollout", "reward", "update", "load", "total"} <= set(world.report.steps[0].times)


def test_checkpoints_come_every_interval_and_at_the_end() -> None:
    world = World(config(steps=7, enabled=False))
    run(world.loop())
    assert [m.step for m, _ in world.archive.committed] == [2, 4, 6, 7]
    assert [m.parents for m, _ in world.archive.committed[:2]] == [(), ("0002-trained",)]
    assert [(a, b, [r["step"] for r in rows]) for a, b, rows in world.archive.tables][:2] == [(1, 2, [1, 2]), (3, 4, [3, 4])]
    shown = [
        (a, b, [(r["step"], r["prompt"], r["reward"] == (r["completion"] == "yes")) for r in rows]) for a, b, rows in world.archive.samples
    ]
    assert [(a, b, [step for step, _, _ in rows]) for a, b, rows in shown][:2] == [(1, 2, [1, 1, 2, 2]), (3, 4, [3, 3, 4, 4])]
    assert all(prompt and right for _, _, rows in shown for _, prompt, right in rows)


def test_a_good_candidate_is_adopted_and_training_goes_on_from_it() -> None:
    world = World(config(), gains={"next@1": 0.4, "two-point@1": -0.2})
    loop = world.loop()
    run(loop)
    (jump,) = world.report.jumps
    assert (jump.step, jump.decision.accepted, jump.method, jump.stats["truncation_error"]) == (6, "next@1", "next", 0.125)
    kinds = [(m.step, m.kind) for m, _ in world.archive.committed]
    assert kinds.count((6, CheckpointKind.JUMPED)) == 1
    assert kinds.index((6, CheckpointKind.TRAINED)) < kinds.index((6, CheckpointKind.JUMPED))
    jumped = next(m for m, _ in world.archive.committed if m.kind is CheckpointKind.JUMPED)
    assert jumped.parents == ("0006-trained",)
    assert world.learner.skill > 0.4
    assert world.report.steps[6].reward_mean > world.report.steps[5].reward_mean + 0.2
    assert world.trajectory.restarts == 1


def test_a_bad_candidate_changes_nothing() -> None:
    refused, plain = World(config(), gains={"next@1": -0.1, "two-point@1": 0.0}), World(config(enabled=False))
    run(refused.loop())
    run(plain.loop())
    (jump,) = refused.report.jumps
    assert jump.decision.accepted is None
    assert refused.learner.skill == plain.learner.skill
    assert [r.reward_mean for r in refused.report.steps] == [r.reward_mean for r in plain.report.steps]
    assert [r.version for r in refused.report.steps] == [r.version for r in plain.report.steps]


def test_gate_none_takes_the_fixed_candidate_without_sampling() -> None:
    world = World(config(gate={"kind": "none", "fixed": "next@1.5"}), gains={"next@1.5": 0.1})
    run(world.loop())
    assert world.report.jumps[0].decision.accepted == "next@1.5"
    assert not any(line.startswith("generate 64") for line in world.rollout.log)


def test_candidates_and_the_last_checkpoint_are_sampled_side_by_side() -> None:
    world = World(config(), gains={"a@1": -0.1, "b@1": -0.1})
    run(world.loop())
    assert "generate 192 at [6, 1073741824, 1073741825]" in world.rollout.log


def test_every_attempt_is_recorded_in_the_store_also_a_refused_one() -> None:
    world = World(config(), gains={"a@1": -0.1})
    run(world.loop())
    (attempt,) = world.archive.records.values()
    assert list(world.archive.records) == ["attempts/00000006"]
    assert attempt["decision"]["accepted"] is None and [row["name"] for row in attempt["decision"]["rows"]] == ["a@1"]


def test_attempts_repeat_when_asked() -> None:
    world = World(config(steps=14, repeat_every=2), gains={"next@1": -0.1})
    run(world.loop())
    assert [j.step for j in world.report.jumps] == [6, 10]


@pytest.mark.parametrize("gains", [{}, {"next@1": 0.3}, {"next@1": -0.3}], ids=["nothing proposed", "accepted", "refused"])
def test_resuming_from_any_checkpoint_ends_like_the_uninterrupted_run(gains: dict[str, float]) -> None:
    whole = World(config(), gains)
    run(whole.loop())
    assert len(whole.archive.committed) >= 6
    for i, at in enumerate(whole.archive.committed[:-1]):
        again = World(whole.config, gains, FakeArchive(committed=whole.archive.committed[: i + 1]))
        run(again.loop(at))
        assert again.learner.skill == whole.learner.skill, at[0].id
        redone = {r.step: (r.reward_mean, r.version, r.metrics) for r in again.report.steps}
        assert redone == {r.step: (r.reward_mean, r.version, r.metrics) for r in whole.report.steps if r.step > at[0].step}
        assert [str(j.decision) for j in again.report.jumps] == [
            str(j.decision) for j in whole.report.jumps if (j.step, at[0].kind) >= (at[0].step, "trained")
        ]


def test_a_checkpoint_has_the_accuracy_of_the_training_since_the_one_before() -> None:
    gains = {"next@1": 0.3}
    world = World(config(steps=14, repeat_every=2), gains)
    run(world.loop())
    rewards = [record.reward_mean for record in world.report.steps]
    expected = [(rewards[i] + rewards[i + 1]) / 2 for i in range(0, 14, 2)]
    assert world.trajectory.accuracies == pytest.approx(expected), "also those of the trajectory that began with the jump"
    for i, at in enumerate(world.archive.committed[:-1]):
        again = World(world.config, gains, FakeArchive(committed=world.archive.committed[: i + 1]))
        run(again.loop(at))
        jumped = sum(manifest.kind is CheckpointKind.JUMPED for manifest, _ in again.archive.committed[: i + 1])
        assert again.trajectory.accuracies == pytest.approx(expected[3 * jumped :]), at[0].id


def test_steps_of_a_run_that_did_not_keep_accuracies_leave_them_unknown() -> None:
    world = World(config(steps=8))
    run(world.loop())
    manifest, state = world.archive.committed[0]
    old = dataclasses.replace(manifest, metadata={k: v for k, v in manifest.metadata.items() if k != "correct"})
    again = World(world.config, archive=FakeArchive(committed=[(old, state)]))
    run(again.loop((old, state)))
    assert again.trajectory.accuracies == [None] * 3


def test_a_run_without_any_update_is_an_error() -> None:
    world = World(config(steps=2, enabled=False))
    loop = world.loop()
    world.learner.refuse_all = True
    with pytest.raises(TrainingError, match="no update"):
        run(loop)


def full(steps: int = 12) -> Config:
    return config(steps, methods=["next"]).model_copy(update={"learner": LearnerSection(mode="full")})


def test_full_weights_replace_each_other_and_candidates_go_beside_them() -> None:
    world = World(full(), gains={"next@1": 0.4, "next@2": -0.1})
    loop = world.loop()
    run(loop)
    (jump,) = world.report.jumps
    assert jump.decision.accepted == "next@1"
    log = world.rollout.log
    assert log[:4] == ["generate 8 at [0]", "reload 1", "generate 8 at [1]", "reload 2"]
    passing = [f"{(1 << 30) + i}" for i in range(2)]
    at = log.index("load " + ",".join(passing))
    assert log[at - 1 : at + 4] == [
        "reload 6",
        log[at],
        f"generate 192 at [6, {passing[0]}, {passing[1]}]",
        "reload 7",
        "generate 8 at [7]",
    ]
    assert not any(line.startswith("load") for line in log[:at] + log[at + 1 :])
    assert world.learner.skill > 0.4
    assert world.report.steps[6].reward_mean > world.report.steps[5].reward_mean + 0.2


def test_full_weights_are_evaluated_one_after_the_other_and_those_in_force_served_again() -> None:
    world = World(full(), gains={"next@1": 0.4})
    loop = world.loop()
    run(loop)
    world.rollout.log.clear()
    results = {r.label: r.avg_at_k.mean for r in asyncio.run(loop.finish())}
    assert results["base"] < results["jumped (next@1)"] <= results["final"] + 0.1
    first = 1 << 30
    expected = ["reload 0", "generate 64 at [0]", f"reload {first}", f"generate 64 at [{first}]", f"reload {first + 1}"]
    assert world.rollout.log == [*expected, f"generate 64 at [{first + 1}]", "reload 13", "generate 64 at [13]"]


@pytest.mark.parametrize("gains", [{}, {"next@1": 0.4}])
def test_a_run_of_full_weights_resumes_from_any_checkpoint(gains: dict[str, float]) -> None:
    whole = World(full(), gains=gains)
    run(whole.loop())
    for number in range(len(whole.archive.committed)):
        part = World(full(), gains=gains, archive=FakeArchive(whole.archive.committed[: number + 1]))
        run(part.loop(part.archive.committed[-1]))
        assert part.learner.skill == whole.learner.skill


def test_methods_that_make_no_adapter_beside_full_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'two-point' does not make.*extrapolation\.methods to \[next\]"):
        Config.model_validate({"learner": {"mode": "full"}})
    assert Config.model_validate({"learner": {"mode": "full"}, "extrapolation": {"enabled": False}}).learner.mode == "full"


def test_a_failed_commit_stops_the_run() -> None:
    world = World(config(), archive=FakeArchive(fail_at_step=4))
    with pytest.raises(OSError, match="disk full"):
        run(world.loop())
    assert [m.step for m, _ in world.archive.committed] == [2]


def test_the_end_compares_base_both_ends_of_the_jump_and_the_final_model() -> None:
    world = World(config(), gains={"next@1": 0.4})
    loop = world.loop()

    async def go() -> Any:
        await loop.run()
        return await loop.finish()

    results = asyncio.run(go())
    assert [r.label for r in results] == ["base", "before the jump (step 6)", "jumped (next@1)", "final"]
    accuracy = [r.avg_at_k.mean for r in results]
    assert accuracy[0] <= accuracy[1] < accuracy[2] <= accuracy[3]
    assert skill_of(make_adapter(0.5)) == 0.5


def test_screening_tests_one_candidate_on_the_prompts_that_did_not_choose_it() -> None:
    gains = {"next@1": 0.1, "next@2": 0.5, "two-point@1": -0.2, "two-point@2": 0.0}
    world = World(config(gate={"samples": 4, "screening": 1.0}), gains=gains)
    run(world.loop())
    (jump,) = world.report.jumps
    assert jump.decision.accepted == "next@2"
    assert [row.name for row in jump.decision.rows] == ["next@2"]
    assert [(row.name, row.num_prompts) for row in jump.decision.screened][-2:] == [("next@1", 24), ("next@2", 24)]
    sampled = [line for line in world.rollout.log if line.startswith("generate") and "10737418" in line]
    assert [line.split()[1] for line in sampled] == ["32", "32", "80"]  # 4 x 8, 2 x 16, (1 + baseline) x 40
    assert sum("," in line and line.startswith("load") for line in world.rollout.log) == 1, "all are loaded once"


def ahead(staleness: int, steps: int = 8, **extrapolation: Any) -> Config:
    cfg = config(steps=steps, **(extrapolation or {"enabled": False}))
    return cfg.model_copy(update={"rollout": cfg.rollout.model_copy(update={"max_staleness": staleness})})


@pytest.mark.parametrize("staleness", [1, 2, 3])
def test_ahead_of_the_learner_batches_lie_at_most_the_allowed_updates_behind(staleness: int) -> None:
    world = World(ahead(staleness))
    run(world.loop())
    found = [record.metrics["staleness"] for record in world.report.steps]
    assert found == [float(min(i, staleness)) for i in range(8)]
    assert sum(line.startswith("generate 8") for line in world.rollout.log) == 8, "nothing is sampled beyond the last step"
    assert not any(record.metrics["dropped_prompts"] for record in world.report.steps)


def test_one_step_off_samples_while_the_learner_updates() -> None:
    world = World(ahead(1, steps=4))
    loop = world.loop()
    events: list[str] = []
    generate, update = world.rollout.generate, world.learner.update

    async def slow_generate(requests: Any, sampling: Any) -> Any:
        events.append("generate")
        await asyncio.sleep(0.01)
        events.append("generated")
        return await generate(requests, sampling)

    async def slow_update(plan: Any) -> Any:
        events.append("update")
        await asyncio.sleep(0.03)
        events.append("updated")
        return await update(plan)

    world.rollout.generate, world.learner.update = slow_generate, slow_update  # type: ignore[method-assign]
    run(loop)
    pair = ["generate", "update", "generated", "updated"]
    assert events == ["generate", "generated", *pair * 3, "update", "updated"]


def test_every_prompt_is_trained_once_an_epoch_also_across_a_kill_and_a_jump() -> None:
    def trained(world: World, loop: TrainingLoop) -> list[str]:
        seen: list[str] = []
        update = world.learner.update

        async def noted(plan: Any) -> Any:
            seen.extend(group.prompt.id for shard in plan.shards for group in shard.value)
            return await update(plan)

        world.learner.update = noted  # type: ignore[method-assign]
        run(loop)
        return seen

    plain = World(config(enabled=False))
    expected = trained(plain, plain.loop())
    jumping = World(ahead(2, steps=12, enabled=True), gains={"next@1": 0.4})
    assert trained(jumping, jumping.loop()) == expected
    assert jumping.report.steps[6].metrics["staleness"] == 0.0, "after a jump no batch of the old policy is used"
    assert jumping.report.steps[-1].metrics["dropped_prompts"] == 16.0
    first = jumping.archive.committed[1]
    assert first[0].step == 4
    again = jumping.loop(first)
    assert trained(jumping, again) == expected[4 * 8 :]


def test_a_failure_while_batches_are_ahead_ends_the_run_and_leaves_no_task() -> None:
    world = World(ahead(2))
    loop = world.loop()

    async def broken(plan: Any) -> Any:
        await asyncio.sleep(0.01)
        raise OSError("the learner is gone")

    world.learner.update = broken  # type: ignore[method-assign]

    async def go() -> int:
        with pytest.raises(OSError, match="the learner is gone"):
            await loop.run()
        return len(asyncio.all_tasks())

    assert asyncio.run(go()) == 1


@pytest.mark.parametrize("gains", [{}, {"next@1": 0.1}], ids=["no jump", "jump"])
def test_groups_drawn_again_ahead_of_the_learner_use_every_prompt_once(gains: dict[str, float]) -> None:
    cfg = ahead(2, steps=12, enabled=bool(gains))
    cfg = cfg.model_copy(update={"algorithm": cfg.algorithm.model_copy(update={"dynamic_sampling": 3})})

    def places(world: World, loop: TrainingLoop) -> list[list[int]]:
        """Of every trained batch; sampling takes a while, another one each time."""
        found: list[list[int]] = []
        generate, trained = world.rollout.generate, loop.feed.trained

        async def slow(requests: Any, sampling: Any) -> Any:
            shards = await generate(requests, sampling)
            await asyncio.sleep(0.001 * (len(world.rollout.log) * 7 % 5))
            return shards

        def noted(batch: Any) -> Any:
            found.append(list(batch.places))
            return trained(batch)

        world.rollout.generate, loop.feed.trained = slow, noted  # type: ignore[method-assign]
        run(loop)
        return found

    world = World(cfg, gains)
    whole = places(world, world.loop())
    assert bool(world.report.jumps) is bool(gains)
    assert any(b != list(range(b[0], b[0] + len(b))) for b in whole), "no draw came between another batch's"
    assert sorted(itertools.chain(*whole)) == list(range(sum(map(len, whole))))
    assert all(record.metrics["staleness"] <= 2 for record in world.report.steps)
    cursors = [manifest.metadata["cursor"] for manifest, _ in world.archive.committed]
    assert any(cursor["beyond"] for cursor in cursors)
    for i, at in enumerate(world.archive.committed[:-1]):
        again = World(cfg, gains, FakeArchive(committed=world.archive.committed[: i + 1]))
        rest = places(again, again.loop(at))
        used = list(itertools.chain(*whole[: at[0].step], *rest))
        assert sorted(used) == list(range(len(used))), at[0].id


def test_sampling_ahead_and_determinism_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="max_staleness"):
        Config.model_validate({"rollout": {"max_staleness": 1}, "run": {"deterministic": True}})


def test_groups_of_equal_rewards_are_drawn_again_and_the_cursor_counts_all_that_was_drawn() -> None:
    def world(rounds: int) -> World:
        cfg = config(steps=6, enabled=False)
        algorithm = cfg.algorithm.model_copy(update={"dynamic_sampling": rounds})
        return World(cfg.model_copy(update={"algorithm": algorithm}))

    plain, drawing = world(0), world(5)
    run(plain.loop())
    run(drawing.loop())
    equal = [record.metrics["equal_reward_groups"] for record in plain.report.steps]
    assert sum(equal) > 0, "the fakes must give groups without a signal"
    assert [record.metrics["equal_reward_groups"] for record in drawing.report.steps] == [0.0] * 6
    drawn = [record.metrics["drawn_groups"] for record in drawing.report.steps]
    assert min(drawn) >= 8 < max(drawn)
    cursor = drawing.archive.committed[-1][0].metadata["cursor"]
    assert cursor["epoch"] * 21 + cursor["offset"] == sum(drawn)
    first = drawing.archive.committed[0]
    expected = [record.reward_mean for record in drawing.report.steps][first[0].step :]
    run(drawing.loop(first))
    assert [record.reward_mean for record in drawing.report.steps] == expected, "a resumed run draws the same"
    assert "drawn_groups" not in plain.report.steps[0].metrics
