"""Event files, read back by TensorBoard itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from next_ray.report.rows import evaluation_row, jump_row, step_row
from next_ray.report.tensorboard import TensorBoard
from tests.report.records import jump_record, result, step_record


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_steps_evaluations_and_jumps_are_there(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path)
    for step in (1, 2):
        board.write(step_row(step_record(step, reward=step / 4)))
    board.write(evaluation_row(2, result("step 2", 4, 0)))
    board.write(jump_row(jump_record(2, None)))
    board.close()
    found = scalars(tmp_path)
    assert found["train/reward_mean"] == [(1, 0.25), (2, 0.5)]
    assert found["time/rollout_s"] == [(1, 1.0), (2, 1.0)]
    assert found["evaluation/current/avg_at_k"] == [(2, 0.5)]
    assert found["jump/accepted"] == [(2, 0.0)]
    assert found["jump/difference/next@1"] == [(2, pytest.approx(0.04))]


def test_a_resumed_run_hides_the_steps_it_repeats(tmp_path: Path) -> None:
    first = TensorBoard(tmp_path)
    for step in (1, 2, 3):
        first.write(step_row(step_record(step, reward=0.25)))
    first.close()
    second = TensorBoard(tmp_path, from_step=1)
    second.write(step_row(step_record(2, reward=0.75)))
    second.close()
    assert scalars(tmp_path)["train/reward_mean"] == [(1, 0.25), (2, 0.75)]
