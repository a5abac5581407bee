"""Event files, read back by TensorBoard itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from next_ray.report.rows import evaluation_row, jump_row, step_row
from next_ray.report.trackers.tensorboard import TensorBoard
from tests.report.records import final_data, jump_record, result, step_record


def events_of(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = events_of(folder)
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def texts(folder: Path, tag: str) -> list[tuple[int, str]]:
    return [(e.step, e.tensor_proto.string_val[0].decode()) for e in events_of(folder).Tensors(tag)]


def test_steps_evaluations_and_jumps_are_there(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path)
    board.begin(0)
    for step in (1, 2):
        board.write(step_row(step_record(step, reward=step / 4)))
    board.write(evaluation_row(2, result("step 2", 4, 0)))
    board.write(jump_row(jump_record(2, "next@1")))
    board.finish(2, final_data())
    board.close()
    found = scalars(tmp_path)
    assert found["train/reward_mean"] == [(1, 0.25), (2, 0.5)]
    assert found["time/rollout_s"] == [(1, 1.0), (2, 1.0)]
    assert found["evaluation/current/avg_at_k"] == [(2, 0.5)]
    assert found["jump/accepted"] == [(2, 1.0)]
    assert found["jump/difference/next@1"] == [(2, pytest.approx(0.04))]
    assert texts(tmp_path, "jumps") == [(2, "step 2: jumped with next@1. a reason")]
    ((step, table),) = texts(tmp_path, "final")
    assert step == 2 and table.splitlines()[-1].startswith("| final | 2 | 0.75 |")


def test_a_resumed_run_hides_the_steps_it_repeats(tmp_path: Path) -> None:
    first = TensorBoard(tmp_path)
    first.begin(0)
    for step in (1, 2, 3):
        first.write(step_row(step_record(step, reward=0.25)))
    first.begin(2)  # the learners were lost
    first.write(step_row(step_record(3, reward=0.5)))
    first.close()
    second = TensorBoard(tmp_path)
    second.begin(1)
    second.write(step_row(step_record(2, reward=0.75)))
    second.close()
    assert scalars(tmp_path)["train/reward_mean"] == [(1, 0.25), (2, 0.75)]
