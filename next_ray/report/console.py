"""What a run looks like while it goes on: a live panel on a terminal, one line a step elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from next_ray.report.text import duration, jump_sentence, percent, printable
from next_ray.types import Sample

LOOP_PHASES = frozenset({"rollout", "reward", "plan", "update", "load", "checkpoint", "wait for commit", "adopt", "roll back"})
"""Phases of every step: shown in the panel, but not worth a line each."""

_RECENT_STEPS = 10
_SAMPLES_EVERY = 10


@dataclass
class RunState:
    """What the displays show. Times are of `time.monotonic`."""

    title: str
    total_steps: int
    gate: str
    phase: str = "starting"
    phase_started: float = field(default_factory=time.monotonic)
    step: int = 0
    row: Mapping[str, Any] = field(default_factory=dict)
    accuracy: str = "not evaluated yet"
    samples: Sequence[Sample] = ()
    _ends: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT_STEPS + 1))

    def enter(self, phase: str) -> None:
        """A phase begins."""
        if not self._ends and phase in LOOP_PHASES:
            self._ends.append(time.monotonic())
        self.phase, self.phase_started = phase, time.monotonic()

    def stepped(self, row: Mapping[str, Any], samples: Sequence[Sample]) -> None:
        """A step ended."""
        self.step, self.row = row["step"], row
        self.samples = samples or self.samples
        self._ends.append(time.monotonic())

    @property
    def seconds_left(self) -> float | None:
        """Estimated from the last steps, with all that happened between them; None before the second."""
        if len(self._ends) < 2 or self.step == 0:
            return None
        return (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1) * (self.total_steps - self.step)


class Display(Protocol):
    """A way to show `RunState`."""

    def phase(self) -> None:
        """The phase changed."""
        ...

    def step(self) -> None:
        """A step ended."""
        ...

    def line(self, text: str) -> None:
        """Something worth a line of its own."""
        ...

    def close(self) -> None:
        """Stop drawing."""
        ...


class PlainDisplay:
    """One line a step, for files, pipes and job logs."""

    def __init__(self, console: Console, state: RunState) -> None:
        self._console, self._state = console, state

    def phase(self) -> None:
        """Phases of every step are passed over in silence."""
        if self._state.phase not in LOOP_PHASES:
            self.line(f"{self._state.phase} ...")

    def step(self) -> None:
        """The step's numbers; at the first and every tenth step its samples below."""
        state = self._state
        left = state.seconds_left
        self.line(f"step {state.step}/{state.total_steps}  {_numbers(state.row)}" + (f"  {duration(left)} left" if left else ""))
        for sample in state.samples if state.step == 1 or state.step % _SAMPLES_EVERY == 0 else ():
            self.line("    " + _sample(sample).plain)

    def line(self, text: str) -> None:
        """Print without wrapping."""
        self._console.print(Text(printable(text)), soft_wrap=True)

    def close(self) -> None:
        """Nothing to stop."""


class LiveDisplay:
    """A panel that is redrawn in place; lines go above it and stay."""

    def __init__(self, console: Console, state: RunState) -> None:
        self._console, self._state = console, state
        self._spinner = Spinner("dots")
        self._live = Live(
            get_renderable=self._render, console=console, refresh_per_second=4, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self._live.start()

    def phase(self) -> None:
        """The next redraw shows it."""

    def step(self) -> None:
        """The next redraw shows it."""

    def line(self, text: str) -> None:
        """Print above the panel."""
        self._console.print(Text(printable(text)))

    def close(self) -> None:
        """Remove the panel."""
        self._live.stop()

    def _render(self) -> RenderableType:
        state = self._state
        rows: list[RenderableType] = [Text(printable(state.title), style="bold"), self._progress()]
        if state.row:
            rows.append(Text(_numbers(state.row)))
        rows.append(_labelled("held out", state.accuracy))
        rows.append(_labelled("gate", state.gate))
        rows += [_labelled("sample", _sample(sample)) for sample in state.samples]
        return Group(*rows)

    def _progress(self) -> RenderableType:
        state = self._state
        left = state.seconds_left
        line = Table.grid(padding=(0, 1), expand=False)
        self._spinner.text = Text(f"{state.phase} {duration(time.monotonic() - state.phase_started)}".ljust(24))
        remaining = "" if left is None else f"about {duration(left)} left"
        done = f"step {state.step}/{state.total_steps}"
        line.add_row(
            self._spinner, ProgressBar(total=state.total_steps, completed=state.step, width=30), Text(done), Text(remaining, "dim")
        )
        return line


def make_display(console: Console, state: RunState) -> Display:
    """The panel on a terminal, plain lines elsewhere."""
    return LiveDisplay(console, state) if console.is_terminal and not console.is_dumb_terminal else PlainDisplay(console, state)


def _labelled(label: str, content: str | Text) -> RenderableType:
    text = Text(f"{label:<9}", style="dim", no_wrap=True, overflow="ellipsis")
    text.append_text(content if isinstance(content, Text) else Text(printable(content), style="not dim"))
    return text


def _numbers(row: Mapping[str, Any]) -> str:
    """Reward, speed and where the step's time went."""
    parts = [f"reward {row['reward_mean']:.3f}"]
    if "tokens_per_s" in row:
        parts.append(f"{row['tokens_per_s']:,.0f} tokens/s")
    total = row.get("time_total_s", 0.0)
    if total > 0:
        rollout, update = row.get("time_rollout_s", 0.0), row.get("time_update_s", 0.0)
        other = max(0.0, total - rollout - update)
        parts.append(f"{total:.2f} s (rollout {rollout:.2f}, update {update:.2f}, other {other:.2f})")
    return "  ".join(parts)


def _sample(sample: Sample) -> Text:
    """Reward, problem, completion and reference answer on one line."""
    text = Text(f"{sample.reward:.2f}  ", style="not dim green" if sample.reward > 0 else "not dim red", no_wrap=True, overflow="ellipsis")
    text.append(printable(sample.prompt, 48), style="not dim default")
    text.append(" -> ", style="dim default")
    text.append(printable(sample.completion, 72), style="not dim default")
    text.append(f"  (answer {printable(sample.answer, 24)})", style="dim default")
    return text


def accuracy_line(row: Mapping[str, Any]) -> str:
    """One evaluation in words."""
    interval = f"[{100 * row['avg_at_k_low']:.1f}, {100 * row['avg_at_k_high']:.1f}]"
    k = row["num_samples"]
    return f"{row['label']}: avg@{k} {percent(row['avg_at_k'])} {interval}, pass@{k} {percent(row['pass_at_k'])}"


def jump_lines(row: dict[str, Any]) -> list[str]:
    """An attempt in words: the decision, then every candidate's showing and the last backtest."""
    lines = [jump_sentence(row)]
    for candidate in row.get("candidates", ()):
        shown = f"    {candidate['name']}: {percent(candidate['accuracy'])}" if "accuracy" in candidate else f"    {candidate['name']}"
        if "difference" in candidate:
            shown += f", {100 * candidate['difference']:+.1f} points"
        lines.append(shown + (f", p = {candidate['p_value']:.3g}" if "p_value" in candidate else ""))
    if row.get("screened"):
        screened = ", ".join(f"{s['name']} {percent(s['accuracy'])} of {s['num_prompts']}" for s in row["screened"])
        lines.append(f"    screened on the first prompts: {screened}")
    for method, why in row.get("abstained", {}).items():
        lines.append(f"    {method} abstained: {why}")
    if row.get("backtest"):
        last = row["backtest"][-1]
        errors = ", ".join(f"{name} {last[name]:.3f}" for name in ("next", "persistence", "linear") if name in last)
        lines.append(f"    relative error on the last unseen transition: {errors}")
    return lines
