"""Whole jobs on real vLLM, DeepSpeed and Ray: an absurd jump is taken back, and numbers that are not finite stop the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from next_ray.store.checkpoints import CheckpointStore
from tests.whole_jobs import environment, manifests, run, timeless

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.deepspeed, pytest.mark.timeout(1800)]
ABSURD = "two-point@300"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for the module, so that the tiny model is trained once."""
    return tmp_path_factory.mktemp("numerics")


def common(shared: Path, name: str) -> list[str]:
    """A model that solves some two fifths of its problems, so that there is something to lose."""
    able = ["model.tiny_steps=500", "data.train.digits=2", "data.train.size=1000", "rollout.prompts_per_step=32"]
    return [f"store.url=file://{shared / 'store'}", f"run.output_dir={shared / 'out'}", f"run.name={name}", *able]


def contents(manifest: dict[str, Any]) -> dict[str, str]:
    return {name: entry["sha256"] for name, entry in manifest["objects"].items()}


def test_an_absurd_jump_is_taken_back_and_the_run_goes_on(shared: Path) -> None:
    env, store = environment(shared), shared / "store"
    options = [*common(shared, "absurd"), f"extrapolation.methods=[{ABSURD}]", f"extrapolation.gate={{kind: none, fixed: {ABSURD}}}"]
    options += ["learner.ranks=2", "learner.zero_stage=2", "learner.schedule=linear"]
    first = run(env, *options, "run.steps=9")
    assert first.returncode == 0, first.stdout + first.stderr
    assert f"took back the jump of step 4 ({ABSURD}); training goes on from checkpoint 00000004-trained" in first.stdout
    found = manifests(store, "absurd")
    (reverted,) = [m for m in found if m["kind"] == "reverted"]
    back = reverted["step"]
    assert 4 < back < 9 and reverted["parents"] == ["00000004-trained"]
    before = next(m for m in found if m["id"] == "00000004-trained")
    assert contents(reverted) == contents(before), "weights, moments and schedule, bit for bit"
    assert reverted["metadata"]["jumps"][-1]["rolled_back"] == back
    after = [m for m in found if m["step"] > back]
    assert after[0]["parents"] == [reverted["id"]] and [m["step"] for m in after] == list(range(back + 1, 10))
    attempt = json.loads((store / "absurd" / "records" / "attempts" / "00000004.json").read_text())
    assert attempt["rolled_back"] == back and "fell from" in attempt["why"]

    second = run(env, *options, "run.steps=10")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "resuming from step 9" in second.stdout
    records = timeless(shared / "out" / "absurd" / "metrics.jsonl")
    reward = {r["step"]: r["reward_mean"] for r in records if r["kind"] == "step"}
    assert list(reward) == list(range(1, 11))
    jumped = [reward[step] for step in range(5, back + 1)]
    assert max(jumped) < min(reward[step] for step in reward if not 4 < step <= back)
    assert [r["step"] for r in records if r["kind"] == "rollback"] == [back]
    assert f"It was taken back after step {back}." in second.stdout


def test_numbers_that_are_not_finite_stop_the_run_and_leave_the_batch(shared: Path) -> None:
    env = environment(shared)
    options = [*common(shared, "infinite"), "extrapolation.enabled=false", "recovery.nonfinite_steps=2", "rollout.engines=2"]
    stopped = run(env, *options, "algorithm.kl_coef=1e39")
    assert stopped.returncode == 2, stopped.stdout + stopped.stderr
    assert "Loss or gradient were not finite in steps 1 to 2" in stopped.stderr and "Traceback" not in stopped.stderr
    with CheckpointStore(f"file://{shared / 'store'}", "infinite") as store:
        rows = store.read_table("nonfinite_batches", 2)
    assert len(rows) == 32 * 4 and {row["step"] for row in rows} == {2}
    assert {row["reward"] for row in rows} <= {0.0, 1.0}
    assert all(len(row["token_ids"]) == len(row["logprobs"]) > 0 for row in rows)
    records = timeless(shared / "out" / "infinite" / "metrics.jsonl")
    assert [(r["step"], r["skipped_nonfinite"], r["optimizer_steps"]) for r in records if r["kind"] == "step"] == [(1, 1, 0), (2, 1, 0)]

    mended = run(env, *options, "run.steps=3")
    assert mended.returncode == 0, mended.stdout + mended.stderr
