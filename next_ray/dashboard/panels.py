"""What the Grafana dashboard shows: six rows of panels, each with its queries, unit and a sentence on how to read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from next_ray.dashboard.queries import latest, or_none, rate, total

WIDTH = 24
"""Columns of Grafana's grid."""


@dataclass(frozen=True)
class Query:
    """A query and what its series are called; `{{tag}}` stands for a tag's value."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One panel; `width` is in columns of 24, `unit` an id of Grafana's."""

    title: str
    unit: str
    description: str
    queries: tuple[Query, ...]
    kind: Literal["timeseries", "stat"] = "timeseries"
    width: int = 8


@dataclass(frozen=True)
class Row:
    """A titled row of panels."""

    title: str
    panels: tuple[Panel, ...]


def _by(tag: str, expr: str) -> Query:
    """A query whose series are told apart by run and one more tag."""
    return Query(expr, f"{{{{run}}}} {{{{{tag}}}}}")


def _run(expr: str, name: str = "") -> Query:
    """A query with one series a run."""
    return Query(expr, f"{{{{run}}}} {name}".rstrip())


def _curve(title: str, unit: str, description: str, *queries: Query, width: int = 8) -> Panel:
    return Panel(title, unit, description, queries, "timeseries", width)


def _number(title: str, unit: str, description: str, query: Query) -> Panel:
    return Panel(title, unit, description, (query,), "stat", 4)


TRAINING = Row(
    "Training",
    (
        _number("Step", "none", "The last RL step that was done.", _run(latest("step"))),
        _number("Planned steps", "none", "run.steps.", _run(latest("planned_steps"))),
        _number(
            "Silence",
            "s",
            "Time since the driver last began a phase. It grows in a long update; far beyond a usual step the run is stalled.",
            _run(f"time() - {latest('last_phase_timestamp_seconds')}"),
        ),
        _curve(
            "Held-out accuracy",
            "percentunit",
            "avg@k on the test prompts by model: current while it trains; at the end base, both ends of the first jump, and final.",
            _by("model", latest("accuracy", "model")),
            width=12,
        ),
        _curve("Reward", "none", "Mean reward of a step's completions. Green lines are accepted jumps.", _run(latest("reward_mean"))),
        _curve(
            "Where the time goes",
            "percentunit",
            "Seconds of each phase in a second of wall-clock time, on the critical path; total is the whole step. What is missing to 100 % "
            "are checkpoints, evaluations and attempts to jump.",
            _by("phase", rate("phase_seconds", "phase")),
        ),
        _curve("Loss", "none", "Its level says little of a policy gradient; a leap in it does.", _run(latest("loss"))),
        _curve("Entropy", "none", "Nats per token. Near 0 the policy explores no more.", _run(latest("entropy"))),
        _curve("Gradient norm", "none", "Before clipping, averaged over optimizer steps.", _run(latest("grad_norm"))),
        _curve("Learning rate", "sci", "Of the last optimizer step.", _run(latest("lr"))),
        _curve(
            "Clipped tokens",
            "percentunit",
            "Tokens whose ratio was clipped, or whose weight the correction capped. Above a few per cent the steps are too large.",
            _run(latest("clip_low_fraction"), "below 1"),
            _run(latest("clip_high_fraction"), "above 1"),
            _run(latest("corrected_fraction"), "corrected"),
        ),
        _curve(
            "Engine against learner",
            "none",
            "Nats per token between their log-probabilities. When it grows, the learner trains on completions that are not its own.",
            _run(latest("mismatch_abs"), "mean"),
            _run(latest("mismatch_kl"), "KL"),
        ),
        _curve("Ratio", "none", "New to old probability of a token.", *(_run(latest(f"ratio_{n}"), n) for n in ("min", "mean", "max"))),
    ),
)

ROLLOUT = Row(
    "Rollout",
    (
        _curve("Tokens", "none", "Prompt and completion tokens processed a second.", _run(rate("tokens"))),
        _curve("Completion length", "none", "Tokens of a completion, mean.", _run(latest("completion_tokens_mean"))),
        _curve(
            "Cut and silent",
            "percentunit",
            "Completions cut at rollout.max_response_tokens, and groups whose answers all earned the same: nothing is learned from those.",
            _run(latest("truncated_fraction"), "cut"),
            _run(latest("equal_reward_groups"), "equal reward"),
        ),
        _curve("Verdicts", "cps", "Completions judged a second, by what the verifier said.", _by("verdict", rate("verdicts", "verdict"))),
        _curve(
            "Staleness",
            "none",
            "Updates between the sampling of a step's oldest completion and its training; 0 unless rollout.max_staleness allows more.",
            Query(or_none(latest("staleness")), "{{run}}"),
        ),
        _curve(
            "Sampled in vain",
            "none",
            "Prompts sampled ahead and dropped at a jump, and those begun anew under a newer adapter.",
            Query(or_none(latest("dropped_prompts")), "{{run}} dropped"),
            Query(or_none(latest("restarted_prompts")), "{{run}} begun anew"),
        ),
    ),
)

TRAJECTORY = Row(
    "Trajectory",
    (
        _curve(
            "Checkpoints",
            "none",
            "Checkpoints of the present trajectory that the predictor knows; a jump begins a new one.",
            _run(latest("trajectory_checkpoints")),
            width=6,
        ),
        _curve(
            "Rank-1 energy",
            "percentunit",
            "Share of the top singular value in the change since the start, mean over modules: how much of it one direction holds.",
            _run(latest("rank1_energy")),
            width=6,
        ),
        _curve(
            "Stride",
            "none",
            "Top singular value of the change since the last checkpoint, mean over modules.",
            _run(latest("local_sigma")),
            width=6,
        ),
        _curve(
            "Back test",
            "percentunit",
            "Relative error on the last transition that no method had seen, at a jump. NExt abstains when it loses to the others.",
            Query(or_none(latest("backtest_error", "method")), "{{run}} {{method}}"),
            width=6,
        ),
        _curve(
            "Work beside training",
            "s",
            "Seconds of delta workers and predictor since the run began; on the critical path only when a jump waits for them.",
            _run(total("delta_seconds"), "deltas"),
            _run(total("fit_seconds"), "fits"),
            width=24,
        ),
    ),
)

JUMPS = Row(
    "Jump decisions",
    (
        _curve(
            "Attempts",
            "none",
            "Attempts to jump by outcome since the driver began, and jumps taken back.",
            Query(or_none(total("jumps", "outcome")), "{{run}} {{outcome}}"),
        ),
        _curve(
            "Candidates at the gate",
            "percentunit",
            "Accuracy of each candidate above the last checkpoint's on the gate's prompts, at the last attempt.",
            Query(or_none(latest("candidate_difference", "candidate")), "{{run}} {{candidate}}"),
        ),
        _curve(
            "p-values",
            "none",
            "Adjusted for the number of candidates; the best is accepted below gate.level.",
            Query(or_none(latest("candidate_p_value", "candidate")), "{{run}} {{candidate}}"),
        ),
        _curve(
            "Accuracy at the gate",
            "percentunit",
            "Of the last checkpoint, which candidates must beat.",
            Query(or_none(latest("gate_baseline_accuracy")), "{{run}}"),
        ),
        _curve(
            "Cost of attempts",
            "s",
            "Seconds on the critical path by phase since the driver began.",
            Query(or_none(total("jump_seconds", "phase")), "{{run}} {{phase}}"),
        ),
        _curve(
            "Abstentions",
            "none",
            "Attempts at which a method had nothing to propose.",
            Query(or_none(total("abstentions", "method")), "{{run}} {{method}}"),
        ),
    ),
)

FAULTS = Row(
    "Faults",
    (
        _curve(
            "Faults and recoveries",
            "none",
            "By actor since the driver began: lost, back, or joined later. As many back as lost is a run that heals.",
            Query(or_none(total("faults", "what", "event")), "{{run}} {{what}} {{event}}"),
        ),
        _curve(
            "Time to recover",
            "s",
            "Seconds until what was lost was back, since the driver began.",
            Query(or_none(total("recovery_seconds", "what")), "{{run}} {{what}}"),
        ),
        _curve(
            "Warnings",
            "none",
            "Warnings about training given so far by kind, and those in force: reward, entropy, length, mismatch.",
            Query(or_none(total("alarms_given", "alarm")), "{{run}} {{alarm}}"),
            _run(latest("alarms"), "in force"),
        ),
        _curve(
            "Updates without finite numbers",
            "none",
            "Optimizer steps left out since loss or gradient were not finite; more than recovery.nonfinite_steps in a row end the run.",
            Query(or_none(total("nonfinite_updates")), "{{run}}"),
        ),
        _curve("Updates", "none", "Optimizer steps applied since the driver began.", _run(total("updates"))),
        _curve("Groups without signal", "none", "Mini batches of a step in which nothing was to be learned.", _run(latest("skipped_zero"))),
    ),
)

STORE = Row(
    "Store",
    (
        _curve(
            "Checkpoints",
            "none",
            "Committed by kind since the archive began: trained, jumped, reverted.",
            _by("kind", total("checkpoints", "kind")),
        ),
        _curve("Throughput", "Bps", "Bytes a second, read and written.", _by("operation", rate("store_bytes", "operation"))),
        _curve("Operations", "ops", "Operations a second by kind.", _by("operation", rate("store_operations", "operation"))),
        _curve(
            "Time of an operation",
            "s",
            "Mean by kind, the pauses before retries included.",
            _by("operation", f"{rate('store_seconds', 'operation')} / {rate('store_operations', 'operation')} > 0"),
        ),
        _curve(
            "Retries",
            "none",
            "Operations repeated after a busy server or a lost connection, since the processes began.",
            Query(or_none(total("store_retries")), "{{run}}"),
        ),
        _curve(
            "Failures",
            "none",
            "Operations that failed for good after 60 s of retries; a run ends with the first one that it cannot do without.",
            Query(or_none(total("store_failures")), "{{run}}"),
        ),
    ),
)

ROWS = (TRAINING, ROLLOUT, TRAJECTORY, JUMPS, FAULTS, STORE)
