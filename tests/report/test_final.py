"""The final table: hand-worked numbers, and sentences that say no more than the numbers do."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from next_ray.report.final import Totals, final_table, paired_gain, summary, verdict
from next_ray.report.rows import jump_row, step_row
from next_ray.types import EvaluationResult
from tests.report.records import jump_record, result, step_record


def totals_of(num_steps: int, accepted: str | None = None, jump_at: int | None = None) -> Totals:
    totals = Totals()
    for step in range(1, num_steps + 1):
        totals.add(step_row(step_record(step)))
        if step == jump_at:
            totals.add(jump_row(jump_record(step, accepted)))
    return totals


def shown(data: dict) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(final_table(data))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_time_is_counted_once() -> None:
    totals = totals_of(10, "two-point@1.5", jump_at=4)
    # a step takes 2 s, of which its phases explain 1.9; an attempt takes 3.5 s on top
    assert totals.critical_path_s == pytest.approx(10 * 2.0 + 3.5)
    assert totals.seconds["rest of the steps"] == pytest.approx(1.0)
    data = summary([result("base", 1), result("final", 2)], totals, {"delta": 1.5}, 10, seed=0)
    assert data["tokens_per_s"] == pytest.approx(40_000 / 20.0)
    assert data["seconds_off_critical_path"] == {"delta": 1.5}


def test_phases_outside_a_steps_total_come_on_top_of_it() -> None:
    totals = Totals()
    totals.add({"kind": "step", "step": 1, "num_tokens": 1, "time_total_s": 2.0, "time_rollout_s": 2.0, "time_checkpoint_s": 0.5})
    assert totals.critical_path_s == pytest.approx(2.5)


def test_gains_are_paired_and_icer_counts_the_steps_of_each_model() -> None:
    base, jumped = result("base", 0, 1, 2, 3), result("jumped (two-point@1.5)", 1, 2, 3, 4)
    gain = paired_gain(base, jumped, seed=0)
    # every prompt gained exactly one of four samples: no spread at all
    assert (gain.mean, gain.low, gain.high) == pytest.approx((0.25, 0.25, 0.25))
    before = result("before the jump (step 4)", 0, 1, 2, 3)
    data = summary([base, before, jumped, result("final", 4, 4, 4, 4)], totals_of(10, "two-point@1.5", 4), {}, 10, seed=0)
    assert [m["steps"] for m in data["models"]] == [0, 4, 4, 10]
    assert [m["icer"] for m in data["models"]] == [None, None, pytest.approx(4 / 25), pytest.approx(10 / 62.5)]
    text = shown(data)
    for fragment in ("before the jump (step 4)", "undefined", "+25.0 [+25.0, +25.0]", "4 held-out prompts x 4 samples at temperature 1"):
        assert fragment in text


def many(label: str, right: int) -> EvaluationResult:
    return result(label, *([right] * 30))


@pytest.mark.parametrize(
    ("final", "sentence"),
    [
        (many("final", 3), "is better than the base"),
        (many("final", 1), "worse than the base"),
        (many("final", 2), "cannot be told apart"),
        (result("final", *([4, 0] * 15)), "cannot be told apart"),
    ],
)
def test_the_verdict_follows_the_interval(final: EvaluationResult, sentence: str) -> None:
    lines = verdict(summary([many("base", 2), final], totals_of(3), {}, 3, seed=0))
    assert any(sentence in line for line in lines)
    assert lines[0] == "No jump was tried in this run."
    assert ("Nothing was" in " ".join(lines)) == (final.avg_at_k.mean <= 0.5)


def test_the_gates_word_is_repeated_and_a_jump_asks_for_a_baseline() -> None:
    refused = verdict(summary([many("base", 2), many("final", 3)], totals_of(5, None, 4), {}, 5, seed=0))
    assert refused[0] == "step 4: no jump, training goes on from the last checkpoint. a reason"
    assert not any("--baseline" in line for line in refused)
    accepted = verdict(summary([many("base", 2), many("final", 3)], totals_of(5, "next@1", 4), {}, 5, seed=0))
    assert accepted[0] == "step 4: jumped with next@1. a reason"
    assert any("--baseline" in line for line in accepted)


def test_a_run_without_times_or_tokens_still_has_a_table() -> None:
    assert "What was gained" in shown(summary([result("base", 1), result("final", 1)], Totals(), {}, 3, seed=0))
