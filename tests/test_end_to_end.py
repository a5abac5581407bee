"""The whole job as its user starts it, on real vLLM, DeepSpeed, Ray and S3, in processes of its own."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from next_ray.store.checkpoints import CheckpointStore
from tests.chaos.books import problems
from tests.chaos.faults import actors
from tests.s3_server import S3Server, s3_server
from tests.whole_jobs import SMALL, TIME_LIMIT_S, command, environment, manifests, run, timeless, wait_for_step

REPORT = [sys.executable, "-m", "next_ray.report"]

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.deepspeed, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for the module, so that the tiny model is trained once."""
    return tmp_path_factory.mktemp("end-to-end")


def test_a_killed_run_ends_like_an_uninterrupted_one(shared: Path) -> None:
    env, store = environment(shared), shared / "store"
    common = [f"store.url=file://{store}", f"run.output_dir={shared / 'out'}", "run.deterministic=true", "store.lease_s=10"]
    whole = run(env, *common, "run.name=whole")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    assert "final" in whole.stdout
    assert "Traceback" not in whole.stdout + whole.stderr

    victim = subprocess.Popen(command(*common, "run.name=killed"), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + TIME_LIMIT_S
        while not any(m["step"] >= 2 for m in manifests(store, "killed")):
            assert victim.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    assert max(m["step"] for m in manifests(store, "killed")) < 6

    again = run(env, *common, "run.name=killed")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "resuming from step" in again.stdout
    expected, got = manifests(store, "whole"), manifests(store, "killed")
    assert [(m["step"], m["kind"]) for m in got] == [(m["step"], m["kind"]) for m in expected]
    assert [{n: o["sha256"] for n, o in m["objects"].items()} for m in got] == [
        {n: o["sha256"] for n, o in m["objects"].items()} for m in expected
    ]
    assert timeless(shared / "out" / "killed" / "metrics.jsonl") == timeless(shared / "out" / "whole" / "metrics.jsonl")

    finished = run(env, *common, "run.name=whole")
    assert finished.returncode == 2
    assert "already has all of its 6 steps" in finished.stderr


def test_a_fork_ends_like_the_run_it_came_from(shared: Path) -> None:
    """By the program's one name, and with a command beside `run`."""
    env, store = environment(shared), shared / "store"
    next_ray = [sys.executable, "-m", "next_ray"]
    forked = subprocess.run(
        [*next_ray, "runs", "fork", "whole@4", "forked", "--store", f"file://{store}"], env=env, capture_output=True, text=True
    )
    assert forked.returncode == 0, forked.stdout + forked.stderr
    words = [*SMALL, f"store.url=file://{store}", f"run.output_dir={shared / 'out'}", "run.deterministic=true", "run.name=forked"]
    words += ["store.lease_s=10"]
    went_on = subprocess.run([*next_ray, "run", *words], env=env, capture_output=True, text=True, timeout=TIME_LIMIT_S)
    assert went_on.returncode == 0, went_on.stdout + went_on.stderr
    assert "resuming from step 4 (00000004-trained)" in went_on.stdout
    whole, fork = manifests(store, "whole"), manifests(store, "forked")
    assert [m["objects"] for m in whole if m["step"] > 4] == [m["objects"] for m in fork if m["step"] > 4]
    rows = [timeless(shared / "out" / name / "metrics.jsonl") for name in ("whole", "forked")]
    steps = [[row for row in log if row["kind"] == "step"] for log in rows]
    assert steps[0] == steps[1]
    differing = subprocess.run(
        [*next_ray, "runs", "diff", "whole", "forked", "--json", "--store", f"file://{store}"], env=env, capture_output=True, text=True
    )
    assert json.loads(differing.stdout)["settings"] == {}
    assert json.loads(differing.stdout)["results"]["state"] == ["finished", "finished"]


def test_a_run_that_is_hurt_and_stopped_ends_like_an_uninterrupted_one(shared: Path) -> None:
    """An engine, a learner and the predictor are killed, then the driver is asked to stop, and goes on: the same bytes at the end."""
    env, store = environment(shared), shared / "store"
    common = [f"store.url=file://{store}", f"run.output_dir={shared / 'out'}", "run.deterministic=true", "store.lease_s=10"]
    with (shared / "hurt.txt").open("w") as log:
        driver = subprocess.Popen(command(*common, "run.name=hurt"), env=env, stdout=log, stderr=log)
    wait_for_step(store, "hurt", 1, driver, shared / "hurt.txt")
    reporting = subprocess.Popen([*REPORT, str(store / "hurt"), "--output", str(shared / "running.html")])
    for step, name in ((1, "EngineActor"), (2, "LearnerActor"), (3, "PredictorActor")):
        wait_for_step(store, "hurt", step, driver, shared / "hurt.txt")
        for process in list(actors(driver.pid, name)):
            process.kill()
    wait_for_step(store, "hurt", 4, driver, shared / "hurt.txt")
    driver.terminate()
    assert driver.wait(TIME_LIMIT_S) == 143, (shared / "hurt.txt").read_text()
    said = (shared / "hurt.txt").read_text()
    assert "rollout engine 0 back after" in said
    assert "the learners back after" in said
    assert "stopped by SIGTERM, with everything committed. Go on with:\n  python -m next_ray.run run.steps=6" in said
    again = run(env, *common, "run.name=hurt")
    assert again.returncode == 0, again.stdout + again.stderr
    ends = [{m["step"]: m["objects"] for m in manifests(store, name)}[6] for name in ("whole", "hurt")]
    assert ends[0] == ends[1]
    logs = [timeless(shared / "out" / name / "metrics.jsonl") for name in ("whole", "hurt")]
    whole, hurt = ([row for row in log if row["kind"] in ("step", "evaluation")] for log in logs)
    assert whole == hurt
    assert problems(CheckpointStore(f"file://{store}", "hurt"), steps=6, interval=1, num_prompts=68, seen={}) == []
    assert reporting.wait(TIME_LIMIT_S) == 0
    assert "running: step" in (shared / "running.html").read_text()
    both = shared / "both.html"
    done = subprocess.run([*REPORT, str(store / "whole"), str(store / "hurt"), "--output", str(both)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = both.read_text()
    assert "B and A cannot be told apart on the same test prompts: +0.0 points [+0.0, +0.0], p = 1." in page
    for said in ("Rank-1 energy by layer", "step 4: ", "rollout engine 0", "the learners", "rewarded", "model.tiny_steps=200"):
        assert said in page, f"the store alone does not say: {said}"


def test_all_weights_on_two_ranks_jump_and_go_on_on_one(shared: Path) -> None:
    env, store = environment(shared), shared / "store"
    common = [f"store.url=file://{store}", f"run.output_dir={shared / 'out'}", "run.name=full", "learner.mode=full", "learner.lr=1e-4"]
    common += ["extrapolation.methods=[next]", "extrapolation.gate={kind: none, fixed: next@1.5}"]
    first = run(env, *common, "learner.ranks=2", "learner.zero_stage=3", "rollout.engines=2", "algorithm.kl_coef=0.01")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "engine and learner agree" in first.stdout
    records = timeless(shared / "out" / "full" / "metrics.jsonl")
    assert [r["accepted"] for r in records if r["kind"] == "jump"] == ["next@1.5"]
    assert {"weights_00000", "moments_00000", "scalars"} == set(manifests(store, "full")[-1]["objects"])
    assert sum(m["kind"] == "jumped" for m in manifests(store, "full")) == 1
    assert "jumped (next@1.5)" in first.stdout

    second = run(env, *common, "run.steps=8")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "resuming from step 6" in second.stdout
    assert manifests(store, "full")[-1]["step"] == 8


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.mark.s3
def test_two_engines_ahead_of_two_learners_on_s3_jump_without_a_gate(shared: Path, s3: S3Server) -> None:
    env = environment(shared, **s3.credentials)
    result = run(
        env,
        f"store.url=s3://{s3.bucket}/runs",
        f"store.endpoint_url={s3.endpoint_url}",
        f"run.output_dir={shared / 'out'}",
        "run.name=s3",
        "rollout.engines=2",
        "rollout.max_staleness=1",
        "algorithm.correction=token-tis",
        "learner.ranks=2",
        "learner.zero_stage=2",
        "extrapolation.delta_workers=2",
        "extrapolation.gate={kind: none, fixed: two-point@1.5}",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    records = timeless(shared / "out" / "s3" / "metrics.jsonl")
    steps = [r for r in records if r["kind"] == "step"]
    assert [r["step"] for r in steps] == [1, 2, 3, 4, 5, 6]
    ahead = [0, *(min(r["optimizer_steps"], 1) for r in steps[:-1])]  # a step whose groups all agree makes no new version
    ahead[4] = 0  # a jump drops what was sampled before it
    assert [r["staleness"] for r in steps] == ahead and sum(ahead) >= 2
    assert [r["dropped_prompts"] for r in records if r["kind"] == "step"] == [0, 0, 0, 0, 8, 8]
    (jump,) = [r for r in records if r["kind"] == "jump"]
    assert jump["accepted"] == "two-point@1.5"
    labels = [r["label"] for r in records if r["kind"] == "evaluation"]
    assert labels[-4:] == ["base", "before the jump (step 4)", "jumped (two-point@1.5)", "final"]


def test_ray_job_submit_runs_the_same_job_and_exports_its_metrics(shared: Path) -> None:
    port, dashboard, metrics = 26379, 28265, 28080
    env = environment(shared, RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    start = [*ray, "start", "--head", "--block", f"--port={port}", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"]
    start += [f"--dashboard-port={dashboard}", f"--metrics-export-port={metrics}", "--num-cpus=2"]
    start += ["--dashboard-agent-listen-port=28365", "--dashboard-agent-grpc-port=28366"]
    sockets = tempfile.mkdtemp(prefix="nr")  # Ray's socket paths must stay short
    start += ["--min-worker-port=31000", "--max-worker-port=31999", f"--temp-dir={sockets}"]
    with (shared / "head.txt").open("w") as log:
        head = subprocess.Popen(start, env=env, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait_for_dashboard(dashboard, head, shared / "head.txt")
        job = [*ray, "job", "submit", f"--address=http://127.0.0.1:{dashboard}", "--working-dir", ".", "--", *command()]
        job += [f"store.url=file://{shared / 'store'}", f"run.output_dir={shared / 'out'}", "run.name=submitted", "run.steps=40"]
        for _ in range(12):
            with (shared / "submitted.txt").open("w") as log:
                submitted = subprocess.Popen(job, env=env, stdout=log, stderr=subprocess.STDOUT)
            seen = _names_while_running(submitted, f"http://127.0.0.1:{metrics}/metrics")
            output = (shared / "submitted.txt").read_text()
            if "No available agent" not in output:
                break
            time.sleep(5)  # the head answers before its job agent does
        assert submitted.wait(TIME_LIMIT_S) == 0, output
        assert "What was gained" in output
        assert [m["step"] for m in manifests(shared / "store", "submitted")][-1] == 40
        assert {"ray_next_ray_reward_mean", "ray_next_ray_steps_total", "ray_next_ray_phase_seconds_total"} <= seen
    finally:
        head.terminate()
        try:
            head.wait(20)
        except subprocess.TimeoutExpired:
            head.kill()
            head.wait()
        shutil.rmtree(sockets, ignore_errors=True)


def _names_while_running(process: subprocess.Popen[bytes], url: str) -> set[str]:
    """Names of this project's metrics that the endpoint showed before the process ended."""
    names: set[str] = set()
    deadline = time.monotonic() + TIME_LIMIT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                text = answer.read().decode()
        except OSError:
            text = ""
        names |= {line.split("{")[0].split(" ")[0] for line in text.splitlines() if line.startswith("ray_next_ray_")}
        time.sleep(1)
    return names


def _wait_for_dashboard(port: int, head: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and head.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise AssertionError(f"the Ray head did not start: {log.read_text()}")
