"""Every metric that a run exports: one table behind the exporters, the dashboard, the alerts and docs/dashboard.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge"]
Group = Literal["training", "rollout", "trajectory", "jump decisions", "faults", "store"]


@dataclass(frozen=True)
class Metric:
    """A metric as it is given to `ray.util.metrics`, which adds the prefix `ray_` and to counters the suffix `_total`.

    `of_step` is its name among a step's numbers (`metrics.jsonl`) when that is where its value comes from. All have the tag `run`.
    """

    name: str
    kind: Kind
    group: Group
    unit: str
    help: str
    tags: tuple[str, ...] = ()
    of_step: str = ""

    @property
    def description(self) -> str:
        """Help text with the unit."""
        return f"{self.help} [{self.unit}]"

    @property
    def exported(self) -> str:
        """Its name in Prometheus."""
        return f"ray_{self.name}" + ("_total" if self.kind == "counter" else "")


def _count(group: Group, name: str, unit: str, text: str, *tags: str) -> Metric:
    return Metric(f"next_ray_{name}", "counter", group, unit, text, tags)


def _gauge(group: Group, name: str, unit: str, text: str, *tags: str) -> Metric:
    return Metric(f"next_ray_{name}", "gauge", group, unit, text, tags)


def _step(group: Group, name: str, unit: str, text: str) -> Metric:
    return Metric(f"next_ray_{name}", "gauge", group, unit, text, of_step=name)


METRICS: tuple[Metric, ...] = (
    _gauge("training", "step", "steps", "Last RL step"),
    _gauge("training", "planned_steps", "steps", "RL steps that the run is to make, run.steps"),
    _gauge("training", "last_phase_timestamp_seconds", "seconds since 1970", "When the driver last began a phase: a sign of life"),
    _count("training", "steps", "steps", "RL steps done by this driver"),
    _count("training", "updates", "optimizer steps", "Optimizer steps applied"),
    _count("training", "phase_seconds", "seconds", "Time on the critical path by phase; total is the whole step", "phase"),
    _gauge("training", "reward_mean", "reward", "Mean reward of the step's completions"),
    _gauge("training", "accuracy", "share", "Held-out avg@k", "model"),
    _gauge("training", "pass_at_k", "share", "Held-out pass@k", "model"),
    _step("training", "loss", "loss", "Policy loss, averaged over the step's mini batches"),
    _step("training", "grad_norm", "norm", "Norm of the gradient before clipping, averaged over optimizer steps"),
    _step("training", "lr", "learning rate", "Learning rate of the last optimizer step"),
    _step("training", "entropy", "nats per token", "Entropy of the policy"),
    _step("training", "kl", "nats per token", "KL divergence to the reference, 0 without algorithm.kl_coef"),
    _step("training", "clip_fraction", "share", "Tokens whose ratio was clipped"),
    _step("training", "clip_low_fraction", "share", "Tokens clipped below ratio 1"),
    _step("training", "clip_high_fraction", "share", "Tokens clipped above ratio 1"),
    _step("training", "corrected_fraction", "share", "Tokens that algorithm.correction capped or left out"),
    _step("training", "ratio_mean", "ratio", "New to old probability, mean over tokens"),
    _step("training", "ratio_max", "ratio", "New to old probability, largest"),
    _step("training", "ratio_min", "ratio", "New to old probability, smallest"),
    _step("training", "mismatch_abs", "nats per token", "Difference of log-probabilities of engine and learner, mean"),
    _step("training", "mismatch_max", "nats per token", "Difference of log-probabilities of engine and learner, largest"),
    _step("training", "mismatch_kl", "nats per token", "KL divergence of engine from learner, estimated on the samples"),
    _step("training", "trained_tokens", "tokens", "Completion tokens with a gradient in the step"),
    _step("training", "padding_fraction", "share", "Places of the learner's batches that hold no token"),
    _step("training", "optimizer_steps", "optimizer steps", "Optimizer steps of the last RL step"),
    _step("training", "skipped_zero", "mini batches", "Mini batches of the last RL step without signal"),
    _count("rollout", "tokens", "tokens", "Tokens of prompts and completions processed"),
    _count("rollout", "verdicts", "completions", "Verifier calls by outcome", "verdict"),
    _step("rollout", "completion_tokens_mean", "tokens", "Length of a completion, mean"),
    _step("rollout", "truncated_fraction", "share", "Completions cut at rollout.max_response_tokens"),
    _step("rollout", "equal_reward_groups", "share", "Groups whose completions all earned the same, from which nothing is learned"),
    _step("rollout", "staleness", "updates", "Age of the oldest completion trained on (rollout.max_staleness)"),
    _step("rollout", "dropped_prompts", "prompts", "Prompts sampled ahead and dropped, since the driver began"),
    _step("rollout", "restarted_prompts", "prompts", "Prompts begun anew under a newer adapter, in the last step (rollout.in_flight)"),
    _step("rollout", "drawn_groups", "groups", "Groups sampled for the last step (algorithm.dynamic_sampling)"),
    _step("rollout", "drawn_reward_mean", "reward", "Mean reward of all groups sampled (algorithm.dynamic_sampling)"),
    _gauge("trajectory", "trajectory_checkpoints", "checkpoints", "Checkpoints that the predictor knows of the present trajectory"),
    _gauge("trajectory", "rank1_energy", "share", "Share of the top singular value in the change since the start, mean over modules"),
    _gauge("trajectory", "local_sigma", "norm", "Top singular value of the change since the last checkpoint, mean over modules"),
    _gauge("trajectory", "backtest_error", "relative error", "Error on the last transition no method had seen, at a jump", "method"),
    _count("trajectory", "delta_seconds", "seconds", "Work of the delta workers, beside training"),
    _count("trajectory", "fit_seconds", "seconds", "Work of the predictor on fits and back tests, beside training"),
    _count("jump decisions", "jumps", "attempts", "Attempts to jump, and jumps taken back", "outcome"),
    _count("jump decisions", "jump_seconds", "seconds", "Time of attempts on the critical path by phase", "phase"),
    _count("jump decisions", "abstentions", "attempts", "Attempts at which a method had nothing to propose", "method"),
    _gauge("jump decisions", "gate_baseline_accuracy", "share", "Accuracy of the last checkpoint on the gate's prompts"),
    _gauge(
        "jump decisions", "candidate_difference", "share", "Accuracy of a candidate above the last checkpoint's, at the gate", "candidate"
    ),
    _gauge("jump decisions", "candidate_p_value", "probability", "Adjusted p-value of a candidate at the gate", "candidate"),
    _count("faults", "faults", "events", "Faults and recoveries by actor", "what", "event"),
    _count("faults", "recovery_seconds", "seconds", "Time until what was lost was back", "what"),
    _count("faults", "alarms_given", "warnings", "Warnings about training by kind", "alarm"),
    _step("faults", "alarms", "warnings", "Warnings about training in force"),
    _count("faults", "nonfinite_updates", "optimizer steps", "Optimizer steps left out since loss or gradient were not finite"),
    _step("faults", "skipped_nonfinite", "optimizer steps", "Of them, those of the last RL step"),
    _count("store", "checkpoints", "checkpoints", "Checkpoints committed by kind", "kind"),
    _count("store", "store_operations", "operations", "Operations on the store by kind", "operation"),
    _count("store", "store_seconds", "seconds", "Time in operations on the store by kind, pauses before retries included", "operation"),
    _count("store", "store_bytes", "bytes", "Bytes read from and written to the store", "operation"),
    _count("store", "store_retries", "retries", "Operations repeated after a busy server or a lost connection"),
    _count("store", "store_failures", "operations", "Operations on the store that failed for good"),
)
"""In the order of docs/dashboard.md. A step's number that is not here is exported as a gauge under its own name."""

BY_NAME = {metric.name: metric for metric in METRICS}
OF_STEP = {metric.of_step: metric for metric in METRICS if metric.of_step}
NOT_EXPORTED = frozenset({"tokens"})
"""Numbers of a step that another metric already holds: the learner's count of `next_ray_tokens`."""


def other(name: str) -> Metric:
    """The metric of a step's number that is not in the table."""
    return OF_STEP.get(name) or _step("training", name, "as in metrics.jsonl", f"{name} of the last step")


def table() -> str:
    """The table of docs/dashboard.md, in Markdown."""
    lines = ["| metric | kind | unit | |", "|---|---|---|---|"]
    for metric in METRICS:
        tags = "{" + ", ".join(metric.tags) + "}" if metric.tags else ""
        lines.append(f"| `{metric.exported}{tags}` | {metric.kind} | {metric.unit} | {metric.help} |")
    return "\n".join(lines) + "\n"
