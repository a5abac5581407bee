"""Rows: what is in them, what is left out, and what a resumed run keeps."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest

from next_ray.errors import StoreError
from next_ray.report.rows import attempt_row, evaluation_row, jump_row, merged, step_row
from next_ray.store.tables import decode_rows, encode_rows
from tests.report.records import jump_record, result, step_record


def test_a_step_row_has_flat_numbers_and_clock_names_that_can_be_told_apart() -> None:
    row = step_row(step_record(3, reward=0.25, verdict_ok=7.0, grad_norm=math.nan))
    assert (row["kind"], row["step"], row["reward_mean"], row["verdict_ok"]) == ("step", 3, 0.25, 7.0)
    assert row["tokens_per_s"] == 2000.0
    assert row["time_rollout_s"] == 1.0
    assert "grad_norm" not in row
    timeless = {k for k in row if not k.startswith(("time", "tokens_per_s", "stats"))}
    assert timeless == {"kind", "step", "version", "reward_mean", "num_tokens", "loss", "verdict_ok"}


def test_an_evaluation_row_has_its_interval_and_decoding() -> None:
    row = evaluation_row(5, result("base", 4, 2, 0, 0))
    assert row["avg_at_k"] == 6 / 16 and row["pass_at_k"] == 0.5
    assert row["avg_at_k_low"] <= row["avg_at_k"] <= row["avg_at_k_high"]
    assert (row["num_prompts"], row["num_samples"], row["temperature"]) == (4, 4, 1.0)


def test_a_jump_row_holds_every_candidate_and_survives_json() -> None:
    row = jump_row(jump_record(4, "two-point@1.5"))
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert [c["name"] for c in row["candidates"]] == ["next@1", "two-point@1.5"]
    assert row["backtest"][0]["next"] == 0.9
    assert row["stats_fit_steps"] == 7.0 and row["time_gate_s"] == 3.0
    assert "accepted" not in jump_row(jump_record(4, None))


def test_an_attempt_comes_back_from_the_stores_record() -> None:
    for accepted in ("two-point@1.5", None):
        record = jump_record(4, accepted)
        stored = json.loads(json.dumps(asdict(record)))
        assert attempt_row(stored) == jump_row(record)
        assert attempt_row({**stored, "rolled_back": 6, "why": "worse"})["rolled_back"] == 6
    with pytest.raises(StoreError, match="not readable"):
        attempt_row({"step": 3})


def test_rows_are_the_same_after_the_stores_parquet() -> None:
    rows = [step_row(step_record(1)), evaluation_row(1, result("step 1", 1, 2)), step_row(step_record(2, late_metric=3.0))]
    stored = decode_rows(encode_rows("metrics", rows), "here")
    assert merged(2, stored, [], []) == rows


def test_a_resumed_log_has_each_step_once_and_only_final_attempts() -> None:
    stored = [step_row(step_record(n)) for n in (1, 2, 3, 4)]
    local = [
        *stored[:2],
        jump_row(jump_record(2, None)),
        *stored[2:],
        jump_row(jump_record(4, None)),
        step_row(step_record(5)),
        evaluation_row(0, result("base", 1)),
    ]
    kept = [(row["step"], row["kind"]) for row in merged(4, stored, local, [])]
    assert kept == [(0, "evaluation"), (1, "step"), (2, "step"), (2, "jump"), (3, "step"), (4, "step")]
    accepted = [*local[:-2], jump_row(jump_record(4, "two-point@1.5"))]
    assert merged(4, stored, accepted, [])[-1]["accepted"] == "two-point@1.5"


def test_accepted_jumps_are_known_on_another_machine_from_the_progress() -> None:
    jump = {"step": 2, "candidate": "next@1", "method": "next", "alpha": 1.0, "from": "a", "to": "b"}
    row = merged(3, [step_row(step_record(n)) for n in (1, 2, 3)], [], [jump])[2]
    assert row == {"kind": "jump", "step": 2, "accepted": "next@1", "method": "next", "alpha": 1.0}


def test_without_stored_rows_the_local_file_is_the_truth_up_to_the_step() -> None:
    local = [step_row(step_record(n)) for n in (1, 2, 3)]
    assert merged(2, [], local, []) == local[:2]
