"""The real libraries: W&B's offline files read back, and an MLflow server; a resumed run goes on in the same run of the tracker."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from next_ray.report.report import Report
from next_ray.settings import load_config
from tests.report.records import jump_record, result, rollback_record, step_record

ID = "0123456789abcdef"
KEY = "5ec7e7" * 7

# Other people's warnings, in their own threads and at the end of their own processes.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(300)]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may need longer than a run waits for it, to import MLflow alone."""
    monkeypatch.setattr("next_ray.report.trackers.background.CLOSE_S", 120.0)


def play(output: Path, tracker: str, begin: int, end: int) -> str:
    """Report steps after `begin` to `end`, with a jump at step 2 that is taken back at step 3; the run ends at step 4."""
    console = Console(file=io.StringIO(), width=200)
    config = load_config(None, ["run.steps=4", "run.name=tracked", f"report.trackers=[{tracker}]", "report.project=trial"])
    with Report(config, output, console) as report:
        report.track(ID)
        report.resume(begin, [])
        for step in range(begin + 1, end + 1):
            report.step(step_record(step, reward=step / 10))
            if step == 2:
                report.jump(jump_record(2, "two-point@1.5"))
            if step == 3:
                report.rollback(rollback_record(3, 2))
        if end == 4:
            results = [result("base", 1, 1), result("final", 3, 3)]
            report.evaluation(4, results[1])
            report.finish(results, {})
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def secret_is_nowhere(secret: str, said: str, output: Path) -> bool:
    """Neither on the console nor in a file that the run leaves."""
    return secret not in said and not any(secret.encode() in path.read_bytes() for path in output.rglob("*") if path.is_file())


def records(folder: Path) -> list[Any]:
    """All records of W&B's offline files below `folder`, oldest file first."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue] made at run time

    paths = sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)
    return [Record.FromString(data) for path in paths for data in frames(path.read_bytes())]


def ended(folder: Path, num_files: int) -> list[Any]:
    """`records` once so many files have their last one: W&B's own process writes it behind the run's back."""
    deadline = time.monotonic() + 30
    while True:
        found = records(folder)
        if sum(record.WhichOneof("record_type") == "exit" for record in found) == num_files:
            return found
        assert time.monotonic() < deadline, f"{len(found)} records and no end"
        time.sleep(0.1)


def frames(data: bytes) -> Iterator[bytes]:
    """The messages of such a file: LevelDB's log format (blocks of 32 KiB; checksum, length, kind) behind a header of seven bytes."""
    at, parts = 7, b""
    while at + 7 < len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def test_wandb_offline_holds_the_run_and_goes_on_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    said = play(tmp_path, "wandb", 0, 2)
    time.sleep(1.1)  # W&B names folders by the second
    said += play(tmp_path, "wandb", 2, 4)
    assert "not log" not in said
    assert secret_is_nowhere(KEY, said, tmp_path)
    found = ended(tmp_path, num_files=2)
    runs = [record.run for record in found if record.WhichOneof("record_type") == "run"]
    assert {(run.run_id, run.project, run.display_name) for run in runs} == {(ID, "trial", "tracked")}
    assert any("jumped" in run.tags for run in runs)
    settings = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert settings["run.steps"] == 4
    history = [
        {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in found
        if record.WhichOneof("record_type") == "history"
    ]
    rewards = {row["step"]: row["train/reward_mean"] for row in history if "train/reward_mean" in row}
    assert rewards == {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}
    assert [row["step"] for row in history if row.get("jump/accepted")] == [2]
    assert [(row["final.ncols"], row["final.nrows"]) for row in history if "final.nrows" in row] == [(12, 2)]
    summary = str([record.summary for record in found if record.WhichOneof("record_type") == "summary"])
    assert "jumped with two-point@1.5" in summary and "took back the jump of step 2" in summary and "final/final/avg_at_k" in summary


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server on loopback, on SQLite in a temporary folder."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts")]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *place]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    try:
        deadline = time.monotonic() + 180
        while True:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                break
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()[-3000:]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def test_mlflow_holds_the_run_and_goes_on_in_it(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.replace("//", "//me:hunter2@"))
    from mlflow import MlflowClient

    client = MlflowClient(server)
    said = play(tmp_path, "mlflow", 0, 2)
    experiment = client.get_experiment_by_name("trial")
    assert experiment is not None
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["KILLED"]
    said += play(tmp_path, "mlflow", 2, 4)
    assert "not log" not in said
    assert secret_is_nowhere("hunter2", said, tmp_path)
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("tracked", "FINISHED")
    assert run.data.params["run.steps"] == "4" and run.data.params["report.project"] == "trial"
    assert run.data.tags["next_ray.id"] == ID and run.data.tags["next_ray.jumped"] == "true"
    assert run.data.tags["next_ray.jump.00000002"] == "step 2: jumped with two-point@1.5. a reason"
    assert run.data.tags["next_ray.rollback.00000003"].startswith("step 3: took back the jump of step 2")
    rewards = client.get_metric_history(run.info.run_id, "train/reward_mean")
    assert [(one.step, one.value) for one in rewards] == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]
    assert run.data.metrics["jump/difference/two-point-1.5"] == 0.14 and run.data.metrics["final/final/avg_at_k"] == 0.75
    table = json.loads(Path(client.download_artifacts(run.info.run_id, "final.json", str(tmp_path))).read_text())
    assert table["columns"][:3] == ["model", "steps", "avg_at_k"] and [row[0] for row in table["data"]] == ["base", "final"]


def test_a_server_that_is_not_there_costs_records_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said = play(tmp_path, "mlflow", 0, 4)
    assert "mlflow does not log everything, training goes on without it" in said
    assert secret_is_nowhere("hunter2", said, tmp_path)
    assert said.count("8 of 8 records were not logged") == 1 and "What was gained" in said
