"""Over fakes: a jump that turns out bad is taken back, also across resumes, and numbers that are not finite stop the run in the end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import Any

import pytest

from next_ray.config import Config, LearnerSection
from next_ray.errors import StoppedError, StoreError, TrainingError
from next_ray.loop import TrainingLoop
from next_ray.stopping import Stop
from next_ray.store.manifest import order
from next_ray.types import CheckpointKind, TrainedBatch
from tests.fakes import FakeArchive
from tests.test_loop import World, ahead, config, run

UNGATED = {"gate": {"kind": "none", "fixed": "next@1.5"}}
BAD, GOOD = {"next@1.5": -0.5}, {"next@1.5": 0.4}
JUMP = 6


def plan(steps: int = 12, **extrapolation: Any) -> Config:
    return config(steps, **UNGATED, **extrapolation)


def ended(world: World) -> World:
    run(world.loop())
    return world


def watching(cfg: Config, steps: int) -> Config:
    after = cfg.extrapolation.after_jump.model_copy(update={"watch_steps": steps})
    return cfg.model_copy(update={"extrapolation": cfg.extrapolation.model_copy(update={"after_jump": after})})


def stopping_after(cfg: Config, steps: int) -> Config:
    return cfg.model_copy(update={"recovery": cfg.recovery.model_copy(update={"nonfinite_steps": steps})})


def test_a_jump_that_turns_out_bad_is_taken_back() -> None:
    world = ended(World(plan(), BAD))
    (record,) = world.report.rollbacks
    back = record.step
    assert JUMP < back <= JUMP + 5 and (record.jump_step, record.candidate, record.returned_to) == (JUMP, "next@1.5", "0006-trained")
    assert record.accuracy_before > 0.2 > record.accuracy_since and record.p_value < 0.0002
    rewards = [step.reward_mean for step in world.report.steps]
    assert len(rewards) == 12, "steps spent are spent"
    assert max(rewards[JUMP:back]) < 0.1 < min(rewards[back:])
    before = next(state for manifest, state in world.archive.committed if manifest.id == "0006-trained")
    assert world.learner.updates == before.scalars["updates"] + 12 - back
    versions = [step.version for step in world.report.steps]
    assert versions == [*range(1, 7), *range(8, back + 2), *range(back + 3, 15)], "one more for the jump, and one for its end"
    assert world.trajectory.restarts == 2


def test_the_lineage_says_so_and_goes_on_from_there() -> None:
    world = ended(World(plan(16), BAD))
    (record,) = world.report.rollbacks
    manifests = [manifest for manifest, _ in world.archive.committed]
    (reverted,) = [manifest for manifest in manifests if manifest.kind is CheckpointKind.REVERTED]
    assert (reverted.step, reverted.parents) == (record.step, ("0006-trained",))
    jump = reverted.metadata["jumps"][-1]
    assert (jump["rolled_back"], jump["why"], jump["to"]) == (record.step, record.reason, "0006-jumped")
    assert f"fell from {record.accuracy_before:.3f}" in record.reason
    later = [manifest for manifest in manifests if manifest.step > record.step]
    assert later[0].parents == (reverted.id,) and later[0].step == record.step + 2, "a new trajectory begins"
    assert world.archive.records["attempts/00000006"]["rolled_back"] == record.step
    assert world.archive.records["attempts/00000006"]["decision"]["accepted"] == "next@1.5"
    ends = [end for _, end, _ in world.archive.tables]
    assert record.step in ends and ends == sorted(set(ends)), "every step is tabled once"


@pytest.mark.parametrize("gains", [GOOD, {"next@1.5": 0.0}], ids=["good", "neutral"])
def test_other_jumps_stay(gains: dict[str, float]) -> None:
    world = ended(World(plan(), gains))
    assert world.report.jumps[0].decision.accepted and not world.report.rollbacks


def test_a_checkpoint_that_is_slow_to_store_holds_what_was_known_at_its_step() -> None:
    world = World(plan(), {"next@1.5": 0.0})
    loop = world.loop()
    table, update = world.archive.table, world.learner.update

    async def slow_table(*args: Any) -> None:
        await asyncio.sleep(0.02)
        await table(*args)

    async def slow_update(batch: Any) -> Any:
        await asyncio.sleep(0.005)  # several steps while a checkpoint is stored
        return await update(batch)

    world.archive.table, world.learner.update = slow_table, slow_update  # type: ignore[method-assign]
    run(loop)
    trained = [m for m, _ in world.archive.committed if m.kind is CheckpointKind.TRAINED and m.step > JUMP]
    assert [len(m.metadata["jumps"][-1]["since"]) for m in trained] == [min(5, m.step - JUMP) for m in trained]


def test_without_watching_a_bad_jump_stays() -> None:
    world = ended(World(watching(plan(), 0), BAD))
    assert not world.report.rollbacks and world.report.steps[-1].reward_mean < 0.1


def test_attempts_go_on_after_it_when_asked() -> None:
    world = ended(World(plan(24, repeat_every=1), BAD))
    steps = [jump.step for jump in world.report.jumps]
    back = [record.step for record in world.report.rollbacks]
    assert steps[0] == JUMP and steps[1] == back[0] + JUMP and [record.jump_step for record in world.report.rollbacks] == steps[: len(back)]
    assert len(ended(World(plan(24), BAD)).report.jumps) == 1


def test_a_jump_is_compared_with_steps_of_its_own_trajectory_only() -> None:
    world = ended(World(watching(plan(24, repeat_every=1), 10), BAD))
    jumps = world.archive.committed[-1][0].metadata["jumps"]
    assert len(jumps) > 1 and {len(jump["before"]) for jump in jumps} == {JUMP}


@pytest.mark.parametrize("kind", ["adapter", "full weights", "repeated"])
def test_resuming_from_any_checkpoint_ends_like_the_uninterrupted_run(kind: str) -> None:
    cfg = plan(14, repeat_every=1) if kind == "repeated" else plan(14, methods=["next"])
    if kind == "full weights":
        cfg = cfg.model_copy(update={"learner": LearnerSection(mode="full")})
    whole = ended(World(cfg, BAD))
    assert whole.report.rollbacks
    for i, at in enumerate(whole.archive.committed[:-1]):
        again = World(cfg, BAD, FakeArchive(committed=whole.archive.committed[: i + 1]))
        run(again.loop(at))
        assert again.learner.skill == whole.learner.skill, at[0].id
        redone = {r.step: (r.reward_mean, r.version, r.metrics) for r in again.report.steps}
        assert redone == {r.step: (r.reward_mean, r.version, r.metrics) for r in whole.report.steps if r.step > at[0].step}
        left = [record for record in whole.report.rollbacks if record.step > at[0].step]
        assert again.report.rollbacks == left, at[0].id
        assert [m for m, _ in again.archive.committed] == [m for m, _ in whole.archive.committed], at[0].id


def test_a_driver_that_dies_between_going_back_and_its_commit_loses_nothing() -> None:
    whole = ended(World(plan(), BAD))
    back = whole.report.rollbacks[0].step
    archive = FakeArchive(fail_at_step=back)
    with pytest.raises(OSError, match="disk full"):
        ended(World(plan(), BAD, archive))
    at = archive.committed[-1]
    assert at[0].step < back and "rolled_back" not in at[0].metadata["jumps"][-1]
    again = World(plan(), BAD, FakeArchive(committed=list(archive.committed)))
    run(again.loop(at))
    assert again.report.rollbacks == whole.report.rollbacks and again.learner.skill == whole.learner.skill


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("archive", "state"),
        ("learner", "restore"),
        ("rollout", "generate"),
        ("rollout", "load"),
        ("archive", "commit"),
        ("archive", "amend"),
    ],
)
def test_a_run_that_is_asked_to_end_around_it_ends_like_the_uninterrupted_one(stage: str, name: str) -> None:
    cfg = plan(12)
    cfg = cfg.model_copy(update={"evaluation": cfg.evaluation.model_copy(update={"every_steps": 1})})
    whole = ended(World(cfg, BAD))
    lineage = {m.id: m.parents for m, _ in whole.archive.committed if m.kind is not CheckpointKind.TRAINED}
    for number in itertools.count(1):
        world = World(cfg, BAD, stop=Stop())
        loop = world.loop()
        asked_at(loop, stage, name, number)
        with contextlib.suppress(StoppedError):
            run(loop)
        if not loop.stop.is_asked:
            break
        world.stop, done = None, list(world.report.rollbacks)
        newest = max(world.archive.committed, key=lambda found: order(f"{found[0].step:08d}-{found[0].kind}"), default=None)
        run(world.loop(newest))
        assert world.learner.skill == whole.learner.skill
        assert [*done, *world.report.rollbacks] == whole.report.rollbacks
        assert {m.id: m.parents for m, _ in world.archive.committed if m.kind is not CheckpointKind.TRAINED} == lineage
        assert world.archive.records["attempts/00000006"]["rolled_back"] == whole.report.rollbacks[0].step
    assert number > 1


def asked_at(loop: TrainingLoop, stage: str, name: str, number: int) -> None:
    """Ask the loop to end before the so manieth call of a stage."""
    holder, count = getattr(loop.stages, stage), itertools.count(1)
    inner = getattr(holder, name)

    async def call(*arguments: Any) -> Any:
        if next(count) == number:
            loop.stop.ask(StoppedError("asked", 143))
        await asyncio.sleep(0)
        return await inner(*arguments)

    setattr(holder, name, call)


def test_a_driver_that_dies_before_the_attempts_record_leaves_that_to_the_next() -> None:
    whole = ended(World(plan(), BAD))
    index, at = next((i, c) for i, c in enumerate(whole.archive.committed) if c[0].kind is CheckpointKind.REVERTED)
    again = World(plan(), BAD, FakeArchive(committed=whole.archive.committed[: index + 1], records={"attempts/00000006": {"step": 6}}))
    run(again.loop(at))
    assert again.archive.records["attempts/00000006"]["rolled_back"] == at[0].step


def test_a_jump_taken_back_after_the_last_step_is_not_what_the_run_ends_with() -> None:
    back = ended(World(plan(), BAD)).report.rollbacks[0].step
    world = World(plan(back), BAD)
    loop = world.loop()
    run(loop)
    last = world.archive.committed[-1][0]
    assert (last.step, last.kind) == (back, CheckpointKind.REVERTED)
    assert [m.step for m, _ in world.archive.committed].count(back) == 1
    results = {result.label: result.avg_at_k.mean for result in asyncio.run(loop.finish())}
    assert results["jumped (next@1.5)"] < 0.1 < results["final"]
    assert results["final"] == results["before the jump (step 6)"]


def test_what_was_sampled_ahead_of_it_is_dropped() -> None:
    cfg = ahead(2, 14, **UNGATED)
    world = ended(World(cfg, BAD))
    (record,) = world.report.rollbacks
    after = world.report.steps[record.step]
    assert (after.step, after.metrics["staleness"]) == (record.step + 1, 0.0)
    assert after.reward_mean > 0.1
    assert after.metrics["dropped_prompts"] == 32.0, "twice two batches of eight"


def test_a_step_that_is_skipped_counts_and_changes_nothing_else() -> None:
    world = World(config(6, enabled=False))
    loop = world.loop()
    world.learner.poisoned = {3, 5}
    run(loop)
    steps = world.report.steps
    assert [step.step for step in steps] == [1, 2, 3, 4, 5, 6]
    assert [step.version for step in steps] == [1, 2, 2, 3, 3, 4], "nothing to hand over"
    assert [step.metrics["skipped_nonfinite"] for step in steps] == [0, 0, 1, 0, 1, 0]
    assert [line for line in world.rollout.log if line.startswith("load")] == ["load 1", "load 2", "load 3", "load 4"]
    assert world.learner.updates == 4
    assert world.archive.committed[-1][0].metadata["nonfinite"] == 0


def test_a_first_step_that_is_skipped_still_leaves_a_policy() -> None:
    world = World(config(2, enabled=False))
    loop = world.loop()
    world.learner.poisoned = {1}
    run(loop)
    assert [step.version for step in world.report.steps] == [1, 2]


def test_too_many_steps_in_a_row_keep_the_batch_and_stop_the_run() -> None:
    world = World(stopping_after(config(12, enabled=False), 3))
    loop = world.loop()
    world.learner.poisoned = {2, 3, 5, 6, 7}
    with pytest.raises(TrainingError, match=r"not finite in steps 5 to 7.*kept in the store.*goes on from checkpoint 0006-trained"):
        run(loop)
    assert [step.step for step in world.report.steps] == [1, 2, 3, 4, 5, 6, 7]
    ((step, batch),) = world.archive.kept_batches
    assert step == 7 and isinstance(batch, TrainedBatch)
    assert [len(shard.sizes) for shard in batch.shards] == [4, 4] and len(batch.rewards) == len(batch.advantages) == 8
    at = world.archive.committed[-1]
    assert (at[0].step, at[0].metadata["nonfinite"]) == (6, 2)
    again = World(world.config, archive=FakeArchive(committed=list(world.archive.committed)))
    resumed = again.loop(at)
    again.learner.poisoned = {1}
    with pytest.raises(TrainingError, match="steps 5 to 7"):
        run(resumed)


def test_a_store_that_cannot_take_the_batch_does_not_hide_why_the_run_stops() -> None:
    world = World(stopping_after(config(4, enabled=False), 1))
    loop = world.loop()
    world.learner.poisoned = range(9)

    async def full(step: int, batch: TrainedBatch) -> str:
        raise StoreError("no space left")

    world.archive.keep_batch = full  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match=r"not finite in step 1,.*could not be kept: no space left.*from the start"):
        run(loop)


def test_a_jump_after_which_numbers_are_not_finite_is_taken_back_instead() -> None:
    world = World(stopping_after(plan(), 2), GOOD)
    loop = world.loop()
    world.learner.poisoned = {7, 8}
    run(loop)
    (record,) = world.report.rollbacks
    assert (record.step, record.reason) == (8, "Loss or gradient were not finite in 2 steps in a row after it.")
    assert len(world.report.steps) == 12 and not world.archive.kept_batches
    (reverted,) = [manifest for manifest, _ in world.archive.committed if manifest.kind is CheckpointKind.REVERTED]
    assert reverted.metadata["nonfinite"] == 0


def test_alarms_come_once_and_again_after_a_resume_only_if_their_cause_has_passed() -> None:
    cfg = watching(plan(14), 0)
    recovery = {"alarms": cfg.recovery.alarms.model_copy(update={"window": 3})}
    cfg = cfg.model_copy(update={"recovery": cfg.recovery.model_copy(update=recovery)})
    whole = ended(World(cfg, BAD))
    ((step, name),) = whole.report.alarms
    assert name == "reward" and JUMP < step <= JUMP + 5
    assert [record.metrics["alarms"] for record in whole.report.steps] == [float(i >= step) for i in range(1, 15)]
    for i, at in enumerate(whole.archive.committed[:-1]):
        again = World(cfg, BAD, FakeArchive(committed=whole.archive.committed[: i + 1]))
        run(again.loop(at))
        assert again.report.alarms == [alarm for alarm in whole.report.alarms if alarm[0] > at[0].step], at[0].id
