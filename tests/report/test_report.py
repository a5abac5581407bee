"""The reporter as a whole: what is printed, what is written, what a resumed run keeps, and that libraries are silent."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import warnings
from pathlib import Path

import pytest
from rich.console import Console

from next_ray.config import Config
from next_ray.report.final import verdict
from next_ray.report.quiet import quiet
from next_ray.report.report import Report, Reporters
from next_ray.report.text import duration, printable
from next_ray.rollout.probe import ProbeReport
from next_ray.settings import load_config
from next_ray.store.tables import decode_rows, encode_rows
from next_ray.types import Alarm, Fault, FaultEvent
from tests.report.records import jump_record, result, rollback_record, step_record

CONFIG = load_config(None, ["run.steps=12", "report.trackers=[]"])


def plain() -> Console:
    return Console(file=io.StringIO(), width=140)


def terminal() -> Console:
    return Console(file=io.StringIO(), width=120, height=40, force_terminal=True, _environ={"TERM": "xterm"})


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def play(config: Config, output: Path, console: Console) -> None:
    with Report(config, output, console) as report:
        report.phase("opening Ray")
        report.resume(0, [])
        report.probe(ProbeReport(0.01, 0.2, 0.01, 0.0, 0.1, 1.0, 0.01, 64))
        for step in range(1, 13):
            for phase in ("rollout", "update"):
                report.phase(phase)
            report.step(step_record(step, completion="4\x1b[31m6\n"))
            if step == 8:
                report.phase("gate")
                report.jump(jump_record(8, "two-point@1.5"))
        results = [result("base", 1, 1), result("final", 3, 4)]
        for one in results:
            report.evaluation(12, one)
        report.finish(results, {"delta": 0.5, "fit": 1.5})


def test_without_a_terminal_there_is_one_line_a_step(tmp_path: Path) -> None:
    console = plain()
    play(CONFIG, tmp_path, console)
    shown = text(console)
    assert len(re.findall(r"^step \d+/12  reward", shown, re.MULTILINE)) == 12
    assert "step 3/12  reward 0.500  2,000 tokens/s  2.00 s (rollout 1.00, update 0.50, other 0.50)" in shown
    assert "opening Ray ..." in shown and "gate ..." in shown and "rollout ..." not in shown
    assert shown.count("12+34= -> ") == 2  # at the first and the tenth step
    assert "step 8: jumped with two-point@1.5. a reason" in shown
    assert "two-point@1.5: 60.0 %, +14.0 points, p = 0.001" in shown
    assert "base: avg@4 25.0 %" in shown and "What was gained" in shown
    assert "\x1b" not in shown


def test_on_a_terminal_the_panel_is_gone_at_the_end_and_the_table_stays(tmp_path: Path) -> None:
    console = terminal()
    play(CONFIG, tmp_path, console)
    shown = text(console)
    assert "What was gained" in shown
    assert "\x1b[31m6" not in shown  # a completion cannot send escape sequences
    assert shown.rstrip().endswith(str(tmp_path))
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor is hidden once and shown again


def test_files_hold_the_run(tmp_path: Path) -> None:
    play(CONFIG, tmp_path, plain())
    rows = lines(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "step"] == list(range(1, 13))
    assert [row["kind"] for row in rows].count("jump") == 1
    assert {row["completion"] for row in lines(tmp_path / "samples.jsonl")} == {"4\x1b[31m6\n"}
    assert load_config(str(tmp_path / "config.yaml")) == CONFIG
    data = json.loads((tmp_path / "summary.json").read_text())
    assert [m["label"] for m in data["models"]] == ["base", "final"]
    assert data["seconds_on_critical_path"]["all"] == pytest.approx(12 * 2.0 + 3.5)


def test_rows_for_the_store_are_handed_out_once_and_in_their_steps_range(tmp_path: Path) -> None:
    with Report(CONFIG, tmp_path, plain()) as report:
        report.resume(0, [])
        report.evaluation(0, result("base", 1))
        report.step(step_record(1))
        report.evaluation(1, result("step 1", 1))
        both = Reporters([report, report])
        assert [(row["kind"], row["step"]) for row in both.take_rows()] == [("step", 1), ("evaluation", 1)]
        both.step(step_record(2))
        report.jump(jump_record(2, None))
        assert [row["step"] for row in report.take_rows()] == [2, 2]


def test_faults_reach_the_store_once_with_the_step_that_was_under_way(tmp_path: Path) -> None:
    lost, back = Fault("the learners", FaultEvent.LOST, "died"), Fault("the learners", FaultEvent.BACK, "go on", 2.5)
    with Report(CONFIG, tmp_path, plain()) as first:
        first.resume(0, [])
        first.step(step_record(1))
        first.fault(lost)  # while step 2 is made: the rows of step 1 may be committed already
        stored = first.take_rows()
        assert [(row["kind"], row["step"]) for row in stored] == [("step", 1)]
        first.resume(1, stored)  # the learners are started anew, and the loop from step 1
        first.fault(back)
        first.step(step_record(2))
        stored += first.take_rows()
        first.fault(Fault("a verifier", FaultEvent.LOST, "died"))  # the driver dies before it is committed
    said = [(row["what"], str(row["event"]), row["step"]) for row in stored if row["kind"] == "fault"]
    assert said == [("the learners", "lost", 2), ("the learners", "back", 2)]
    stored = decode_rows(encode_rows("metrics", stored), "here")
    for folder, later in ((tmp_path, [("a verifier", 3)]), (tmp_path / "another machine", [])):
        with Report(CONFIG, folder, plain()) as second:
            second.resume(2, stored)
            second.step(step_record(3))
            assert [(row["what"], row["step"]) for row in second.take_rows() if row["kind"] == "fault"] == later
            data = second.finish([result("base", 1), result("final", 1)], {})
        assert [(row["what"], row["step"]) for row in data["faults"]][:2] == [("the learners", 1), ("the learners", 1)]
        assert data["seconds_on_critical_path"]["all"] == pytest.approx(3 * 2.0), "a recovery is not counted a second time"


def test_a_resumed_run_repeats_nothing_and_counts_everything(tmp_path: Path) -> None:
    with Report(CONFIG, tmp_path, plain()) as first:
        first.resume(0, [])
        for step in (1, 2, 3):
            first.step(step_record(step))
        stored = first.take_rows()[:2]
    console = plain()
    with Report(CONFIG, tmp_path, console) as second:
        second.resume(2, stored)
        second.step(step_record(3))
        results = [result("base", 1), result("final", 1)]
        second.finish(results, {}, [{"step": 2, "candidate": "next@1"}])
    assert [row["step"] for row in lines(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert [row["step"] for row in lines(tmp_path / "samples.jsonl")] == [1, 2, 3]
    data = json.loads((tmp_path / "summary.json").read_text())
    assert data["num_tokens"] == 3 * 4000
    assert "step 2: jumped with next@1." in text(console)


def test_a_jump_taken_back_is_said_everywhere_and_a_resumed_run_still_knows(tmp_path: Path) -> None:
    sentence = "step 4: took back the jump of step 2 (two-point@1.5); training goes on from checkpoint 00000002-trained. The accuracy fell."
    console = plain()
    with Report(CONFIG, tmp_path, console) as first:
        first.resume(0, [])
        for step in (1, 2, 3, 4):
            first.step(step_record(step, skipped_nonfinite=float(step == 3)))
            if step == 2:
                first.jump(jump_record(2, "two-point@1.5"))
        Reporters([first]).rollback(rollback_record(4, 2))
        stored = first.take_rows()
        first.step(step_record(5))
    assert sentence in text(console)
    row = next(row for row in lines(tmp_path / "metrics.jsonl") if row["kind"] == "rollback")
    assert (row["step"], row["jump_step"], row["accuracy_before"], row["p_value"]) == (4, 2, 0.5, 1e-6)
    for folder in (tmp_path, tmp_path / "another machine"):
        jumps = [{"step": 2, "candidate": "two-point@1.5", "rolled_back": 4, "why": "The accuracy fell."}]
        with Report(CONFIG, folder, plain()) as second:
            second.resume(4, decode_rows(encode_rows("metrics", stored), "here"), jumps)
            data = second.finish([result("base", 1), result("final", 1)], {}, jumps)
            assert second._state.gate == sentence
        assert [row["kind"] for row in lines(folder / "metrics.jsonl")] == ["step", "step", "jump", "step", "step", "rollback"]
        assert [attempt["rolled_back"] for attempt in data["attempts"]] == [4]
        assert data["skipped_nonfinite"] == 1
        said = " ".join(verdict(data))
        assert "What the jump saved" not in said
        assert "It was taken back after step 4. The accuracy fell." in said and "not finite: 1." in said


def test_a_warning_is_shown_and_logged(tmp_path: Path) -> None:
    console = plain()
    with Report(CONFIG, tmp_path, console) as report:
        report.resume(0, [])
        report.step(step_record(1))
        Reporters([report]).alarm(1, Alarm("reward", "It fell."))
        assert [row["kind"] for row in report.take_rows()] == ["step", "alarm"]
    assert "warning: step 1: It fell." in text(console)
    assert lines(tmp_path / "metrics.jsonl")[1] == {"kind": "alarm", "step": 1, "alarm": "reward", "message": "It fell."}


def test_library_noise_goes_to_the_file_and_errors_come_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "logs" / "infrastructure.log"
    level, handlers = logging.getLogger().level, logging.getLogger().handlers[:]
    with pytest.raises(RuntimeError, match="boom"), quiet(log):
        os.write(2, b"from a C library\n")
        print("from python", file=sys.__stderr__, flush=True)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("a warning", UserWarning, stacklevel=1)
        logging.getLogger("library.engine").warning("a log line")
        raise RuntimeError("boom")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"
    noise = log.read_text()
    for fragment in ("from a C library", "from python", "a warning", "library.engine: a log line"):
        assert fragment in noise
    assert (logging.getLogger().level, logging.getLogger().handlers) == (level, handlers)


def test_by_default_it_prints_to_stdout_whatever_libraries_do_with_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Report(CONFIG, tmp_path) as report:
        report.say("shown")
        os.write(1, b"a library prints\n")
    out = capfd.readouterr().out
    assert "shown" in out and "a library prints" not in out
    assert "a library prints" in (tmp_path / "infrastructure.log").read_text()


def test_closing_twice_is_closing_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    report = Report(CONFIG, tmp_path, plain())
    report.close()
    with report:
        pass
    report.close()
    os.write(2, b"heard\n")
    assert capfd.readouterr().err == "heard\n"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.84, "0.8 s"), (42, "42 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (3599.7, "1 h 00 min"), (7800, "2 h 10 min")],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_text_of_models_is_harmless_and_short() -> None:
    assert printable("a\x1b]0;title\x07\nb\u202e") == "a·]0;title·⏎b·"
    assert printable("x" * 50, 10) == "x" * 9 + "…"
