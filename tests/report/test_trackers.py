"""Trackers behind the report: none stops or slows a run, each is refused before anything starts when it cannot work."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from next_ray.errors import ConfigError
from next_ray.report.report import Report
from next_ray.report.rows import step_row
from next_ray.report.trackers.background import Background, scrubbed
from next_ray.report.trackers.choice import check_trackers, flat
from next_ray.run import tracker_id
from next_ray.settings import load_config
from next_ray.store.checkpoints import CheckpointStore
from tests.report.records import step_record


@dataclass
class Fake:
    """A tracker that keeps what it is given; fails when told to, and is slow until `gate` opens."""

    failures: dict[str, str] = field(default_factory=dict)
    gate: threading.Event = field(default_factory=threading.Event)
    seen: list[tuple[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()

    def begin(self, from_step: int) -> None:
        self._take("begin", from_step)

    def write(self, row: Mapping[str, Any]) -> None:
        self._take("write", row["step"])

    def finish(self, step: int, summary: Mapping[str, Any]) -> None:
        self._take("finish", step)

    def close(self) -> None:
        self._take("close", None)

    def _take(self, verb: str, what: Any) -> None:
        self.gate.wait()
        if verb in self.failures:
            raise RuntimeError(self.failures[verb])
        self.seen.append((verb, what))


def rows(*steps: int) -> list[dict[str, Any]]:
    return [step_row(step_record(step)) for step in steps]


def test_all_records_arrive_in_order_and_nothing_is_said() -> None:
    tracker, said = Fake(), []
    background = Background("fake", tracker, said.append)
    background.begin(0)
    for row in rows(1, 2):
        background.write(row)
    background.begin(1)
    background.write(rows(2)[0])
    background.finish(2, {})
    background.close()
    background.close()
    assert tracker.seen == [("begin", 0), ("write", 1), ("write", 2), ("begin", 1), ("write", 2), ("finish", 2), ("close", None)]
    assert said == []


def test_a_tracker_that_fails_is_named_once_and_its_losses_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "abcdef123456")
    tracker, said = Fake({"write": "no route to https://me:word@host/ with\nabcdef123456"}), []
    background = Background("fake", tracker, said.append)
    background.begin(0)
    for row in rows(1, 2, 3):
        background.write(row)
    background.close()
    assert said == [
        "fake does not log everything, training goes on without it (RuntimeError: no route to https://***@host/ with ***).",
        "fake: 3 of 3 records were not logged.",
    ]


def test_a_tracker_that_cannot_begin_is_asked_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("next_ray.report.trackers.background.RETRY_S", 0.2)
    tracker, said = Fake({"begin": "down"}), []
    background = Background("fake", tracker, said.append)
    background.begin(7)
    background.write(rows(8)[0])
    deadline = time.monotonic() + 10
    while not said and time.monotonic() < deadline:
        time.sleep(0.01)
    tracker.failures.clear()
    time.sleep(0.3)
    background.write(rows(9)[0])
    background.close()
    assert tracker.seen == [("begin", 7), ("write", 9), ("close", None)]
    assert said[-1] == "fake: 1 of 2 records were not logged."


def test_a_slow_tracker_holds_nobody_up_and_its_queue_is_bounded() -> None:
    tracker, said = Fake(), []
    tracker.gate.clear()
    background = Background("fake", tracker, said.append, longest=5)
    background.begin(0)
    started = time.monotonic()
    for row in rows(*range(1, 101)):
        background.write(row)
    assert time.monotonic() - started < 1
    background.close(wait_s=0.2)
    assert time.monotonic() - started < 2
    assert "it is too slow" in said[0] and said[1:] == ["fake: 100 of 100 records were not logged."]
    tracker.gate.set()


def test_a_report_whose_tracker_fails_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("next_ray.report.trackers.tensorboard.TensorBoard.write", lambda *_: 1 / 0)
    console = Console(file=io.StringIO(), width=140)
    with Report(load_config(None, ["run.steps=2"]), tmp_path, console) as report:
        report.track("0" * 16)
        report.resume(0, [])
        report.step(step_record(1))
        report.step(step_record(2))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert shown.count("tensorboard does not log everything, training goes on without it (ZeroDivisionError") == 1
    assert "tensorboard: 2 of 2 records were not logged." in shown
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("tracker", "complaint"),
    [("wandb", "set WANDB_API_KEY, run `wandb login`, or set WANDB_MODE=offline"), ("mlflow", "MLFLOW_TRACKING_URI does not say")],
)
def test_a_tracker_that_would_have_to_ask_is_refused_before_anything_starts(
    tracker: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    section = load_config(None, [f"report.trackers=[{tracker}]"]).report
    with pytest.raises(ConfigError, match=complaint):
        check_trackers(section)
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    check_trackers(section)


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_a_missing_package_is_named(tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with (
        pytest.raises(ConfigError, match=f"the package {tracker} is not installed"),
        Report(load_config(None, [f"report.trackers=[{tracker}]"]), tmp_path, Console(file=io.StringIO())),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_id_stays_with_the_run_and_a_copy_gets_its_own(tmp_path: Path) -> None:
    one = CheckpointStore(f"file://{tmp_path}", "one")
    assert tracker_id(one) == tracker_id(CheckpointStore(f"file://{tmp_path}", "one"))
    copied = CheckpointStore(f"file://{tmp_path}", "two")
    copied.put_json("trackers", one.get_json("trackers"))
    assert tracker_id(copied) != tracker_id(one)
    copied.put_json("trackers", {"run": "two", "id": "' or 1 = 1"})
    assert tracker_id(copied) == tracker_id(copied) != "' or 1 = 1"


def test_settings_are_flat_and_secrets_are_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dict(flat({"a": {"b": 1, "c": {"d": [2]}}, "e": {}})) == {"a.b": 1, "a.c.d": [2], "e": {}}
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    assert scrubbed("hunter2 at http://a:b@c/d") == "*** at http://***@c/d"
