"""The whole job as its user starts it, in a process of its own: small settings, and looks at what it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SMALL = [
    "run.steps=6",
    "run.seed=5",
    "model.tiny_steps=200",
    "data.train.digits=1",
    "data.train.size=100",
    "data.gate_prompts=16",
    "data.test_prompts=16",
    "rollout.prompts_per_step=8",
    "rollout.samples_per_prompt=4",
    "extrapolation.interval_steps=1",
    "extrapolation.checkpoints=4",
    "extrapolation.horizon=2",
    "extrapolation.methods=[next, two-point, alpharl@1]",
    "extrapolation.predictor.fit_steps=20",
    "extrapolation.predictor.refine_steps=10",
    "evaluation.samples=2",
    "cluster.dashboard=false",
]
TIME_LIMIT_S = 600


def command(*overrides: str) -> list[str]:
    return [sys.executable, "-m", "next_ray.run", *SMALL, *overrides]


def environment(tmp_path: Path, **extra: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return {**kept, "NEXT_RAY_CACHE": str(tmp_path / "cache"), "COLUMNS": "160", **extra}


def run(env: dict[str, str], *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*overrides), env=env, capture_output=True, text=True, timeout=TIME_LIMIT_S)


def manifests(store: Path, name: str) -> list[dict[str, Any]]:
    found = [json.loads(p.read_text()) for p in (store / name / "manifests").glob("*.json")]
    return sorted(found, key=lambda m: (m["step"], m["kind"] == "jumped"))


def timeless(metrics: Path) -> list[dict[str, Any]]:
    """The metrics log without what depends on the clock."""
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [{k: v for k, v in r.items() if not k.startswith(("time", "tokens_per_s", "stats"))} for r in records]


def wait_for_step(store: Path, name: str, step: int, driver: subprocess.Popen[bytes], log: Path) -> None:
    """Until a checkpoint of that step or a later one is committed; a driver that ends before is shown with its `log`."""
    deadline = time.monotonic() + TIME_LIMIT_S
    while not any(m["step"] >= step for m in manifests(store, name)):
        assert driver.poll() is None, f"the run ended before step {step}: {log.read_text()[-4000:]}"
        assert time.monotonic() < deadline, f"step {step} is not committed in time: {log.read_text()[-4000:]}"
        time.sleep(0.05)
