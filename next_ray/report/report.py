"""The run's reporter: console, files and the final table behind the loop's `Reporter` port."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from next_ray.config import Config
from next_ray.ports import Reporter
from next_ray.progress import Progress, Schedule
from next_ray.report.console import RunState, accuracy_line, jump_lines, make_display
from next_ray.report.final import Totals, final_table, summary
from next_ray.report.metrics import JsonLines
from next_ray.report.quiet import duplicate_stdout, quiet
from next_ray.report.rows import (
    FAULT,
    JUMP,
    ROLLBACK,
    STEP,
    Row,
    alarm_row,
    evaluation_row,
    fault_row,
    is_stored,
    jump_row,
    merged,
    rollback_row,
    step_row,
    under_way,
)
from next_ray.report.text import fault_sentence, jump_sentence, rollback_sentence
from next_ray.report.trackers.background import Background
from next_ray.report.trackers.choice import check_trackers, make_trackers
from next_ray.settings import to_yaml
from next_ray.types import Alarm, EvaluationResult, Fault, JumpRecord, RollbackRecord, StepRecord


class Report:
    """Shows and logs a run. A context manager: it silences the libraries while it is open and puts everything back.

    `output` gets `metrics.jsonl`, `samples.jsonl`, `config.yaml`, `infrastructure.log`, `tensorboard/` and at the end `summary.json`.
    """

    def __init__(self, config: Config, output: Path, console: Console | None = None) -> None:
        self._config, self._output = config, output
        self._console = console or _stdout_console()
        self._own_stream = console is None
        self._metrics = JsonLines(output / "metrics.jsonl")
        self._samples = JsonLines(output / "samples.jsonl")
        self._trackers: list[Background] = []
        self._pending: list[Row] = []
        self._totals = Totals()
        self._resources = ExitStack()

    def __enter__(self) -> Report:
        config = self._config
        check_trackers(config.report)
        self._output.mkdir(parents=True, exist_ok=True)
        (self._output / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
        self._resources.enter_context(quiet(self._output / "infrastructure.log"))
        title = f"next_ray  run {config.run.name}  model {config.model.name}  output {self._output}"
        self._state = RunState(title, config.run.steps, _first_gate(config))
        self._display = make_display(self._console, self._state)
        if not self._console.is_terminal:
            self._display.line(title)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop drawing, close the files and let the libraries speak again; closing twice does nothing."""
        if hasattr(self, "_display"):
            self._display.close()
        self._metrics.close()
        self._samples.close()
        for tracker in self._trackers:
            tracker.close()
        self._resources.close()
        if self._own_stream:
            self._console.file.close()

    def track(self, run_id: str) -> None:
        """Hand all that is logged from now on to the configured trackers, which know the run as `run_id`; before `resume`."""
        self._trackers = make_trackers(self._config, self._output, run_id, self.say)

    def say(self, message: object) -> None:
        """Show a sentence."""
        if str(message):
            self._display.line(str(message))

    def phase(self, name: str) -> None:
        """A phase begins."""
        self._state.enter(name)
        self._display.phase()

    def probe(self, result: Any) -> None:
        """Show how far engine and learner are apart (`rollout.probe.ProbeReport`)."""
        self.say(
            f"engine and learner agree: log-probabilities differ by {result.mean_abs:.4f} nats on average, "
            f"{result.max_abs:.3f} at most, over {result.num_tokens} tokens"
        )

    def resume(self, step: int, stored: Sequence[Mapping[str, Any]], jumps: Sequence[Mapping[str, Any]] = ()) -> None:
        """Bring the logs to the end of `step` (0: empty), from the store's rows, the local file and the accepted jumps."""
        rows = merged(step, stored, self._metrics.read(), jumps) if step else []
        self._metrics.rewrite(rows)
        self._samples.truncate(step if step else -1)
        faults = [row for row in rows if row["kind"] == FAULT]
        self._totals, self._pending = Totals(), [{**row, "step": step + 1} for row in faults if not is_stored(row, stored)]
        self._state.step = step
        for row in rows:
            self._totals.add(row)
            if row["kind"] == JUMP:
                self._state.gate = jump_sentence(row)
            if row["kind"] == ROLLBACK:
                self._state.gate = rollback_sentence(row)
        steps = [row for row in rows if row["kind"] == STEP]
        if steps:
            self._state.row = steps[-1]
        for tracker in self._trackers:
            tracker.begin(step)

    def step(self, record: StepRecord) -> None:
        """An RL step is done."""
        row = step_row(record)
        self._write(row)
        self._pending.append(row)
        for sample in record.samples:
            self._samples.append({"step": record.step, **asdict(sample)})
        self._state.stepped(row, record.samples)
        self._display.step()

    def evaluation(self, step: int, result: EvaluationResult) -> None:
        """A model was evaluated on the test prompts."""
        row = evaluation_row(step, result)
        self._write(row)
        if step:
            self._pending.append(row)
        self._state.accuracy = accuracy_line(row)
        self._display.line(self._state.accuracy)

    def jump(self, record: JumpRecord) -> None:
        """A jump was tried."""
        row = jump_row(record)
        self._write(row)
        self._state.gate = jump_sentence(row)
        for line in jump_lines(row):
            self._display.line(line)

    def rollback(self, record: RollbackRecord) -> None:
        """A jump was taken back."""
        row = rollback_row(record)
        self._write(row)
        self._pending.append(row)
        self._state.gate = rollback_sentence(row)
        self._display.line(self._state.gate)

    def alarm(self, step: int, alarm: Alarm) -> None:
        """Training seems to go wrong."""
        row = alarm_row(step, alarm)
        self._write(row)
        self._pending.append(row)
        self._display.line(f"warning: step {step}: {alarm.message}")

    def fault(self, fault: Fault) -> None:
        """A fault was met, or recovered from."""
        row = fault_row(self._state.step, fault)
        self._write(row)
        self._pending.append(under_way(row))
        self.say(fault_sentence(fault))

    def take_rows(self) -> list[dict[str, Any]]:
        """Rows of all but attempted jumps since the last call, for the store's metrics table; a fault's when its step has ended."""
        rows = [row for row in self._pending if row["step"] <= self._state.step]
        self._pending = [row for row in self._pending if row["step"] > self._state.step]
        return rows

    def finish(
        self, results: Sequence[EvaluationResult], background_s: Mapping[str, float], jumps: Sequence[Mapping[str, Any]] = ()
    ) -> dict[str, Any]:
        """Print the final table, write `summary.json` and return its content; `jumps` are accepted ones whose rows may be missing."""
        known = {row["step"] for row in self._totals.attempts}
        for jump in jumps:
            if jump["step"] not in known:
                outcome = {name: jump[name] for name in ("rolled_back", "why") if name in jump}
                self._totals.attempts.append({"kind": JUMP, "step": jump["step"], "accepted": jump["candidate"], **outcome})
        data = summary(results, self._totals, background_s, self._config.run.steps, self._config.run.seed)
        (self._output / "summary.json").write_text(json.dumps(data, indent=2), encoding="utf-8")
        for tracker in self._trackers:
            tracker.finish(self._config.run.steps, data)
        self._display.close()
        self._console.print(final_table(data))
        self._console.print(f"Logs, metrics and samples: {self._output}", soft_wrap=True, markup=False, highlight=False)
        return data

    def _write(self, row: Row) -> None:
        self._metrics.append(row)
        self._totals.add(row)
        for tracker in self._trackers:
            tracker.write(row)


class Reporters:
    """Several reporters as one; the rows for the store are the first one's that has any."""

    def __init__(self, reporters: Sequence[Reporter]) -> None:
        self._reporters = tuple(reporters)

    def phase(self, name: str) -> None:
        """Tell all."""
        for reporter in self._reporters:
            reporter.phase(name)

    def step(self, record: StepRecord) -> None:
        """Tell all."""
        for reporter in self._reporters:
            reporter.step(record)

    def evaluation(self, step: int, result: EvaluationResult) -> None:
        """Tell all."""
        for reporter in self._reporters:
            reporter.evaluation(step, result)

    def jump(self, record: JumpRecord) -> None:
        """Tell all."""
        for reporter in self._reporters:
            reporter.jump(record)

    def rollback(self, record: RollbackRecord) -> None:
        """Tell all."""
        for reporter in self._reporters:
            reporter.rollback(record)

    def alarm(self, step: int, alarm: Alarm) -> None:
        """Tell all."""
        for reporter in self._reporters:
            reporter.alarm(step, alarm)

    def fault(self, fault: Fault) -> None:
        """Tell all."""
        for reporter in self._reporters:
            reporter.fault(fault)

    def take_rows(self) -> list[dict[str, Any]]:
        """All rows; reporters that keep none add none."""
        return [row for reporter in self._reporters for row in reporter.take_rows()]


def _stdout_console() -> Console:
    """Tables need room: where the width is not known (a file, a job log), 140 columns are taken."""
    out = duplicate_stdout()
    console = Console(highlight=False, file=out)
    return console if console.is_terminal else Console(highlight=False, file=out, width=max(140, console.width))


def _first_gate(config: Config) -> str:
    """When the first jump will be tried, in words."""
    schedule = Schedule(config.extrapolation, config.run.steps)
    step = next((step for step in range(1, config.run.steps) if schedule.attempt_due(Progress(step=step))), None)
    return "no jump is planned in this run" if step is None else f"first tried after step {step}"
