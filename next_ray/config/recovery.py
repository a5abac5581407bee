"""What a run does about faults: how often it starts something anew, how long it waits, when it gives up."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from next_ray.config.section import Section


class AlarmSection(Section):
    """When the run warns that training goes wrong; every alarm is given once until its cause has passed."""

    window: int = Field(default=10, ge=2)
    """Steps over which reward, entropy and length are averaged; an average is compared with the best one so far."""
    reward_drop: float = Field(default=0.5, gt=0, le=1)
    """Share of the best mean reward that may be lost before the run warns of a collapse."""
    entropy_drop: float = Field(default=0.9, gt=0, le=1)
    """Share of the first window's entropy that may be lost before the run warns of a collapse."""
    truncated: float = Field(default=0.5, gt=0, le=1)
    """Share of completions cut at rollout.max_response_tokens from which on the run warns of runaway length."""
    mismatch: float = Field(default=4.0, gt=1)
    """Growth of the mean difference between engine and learner, against the first window's, from which on the run warns."""


class RecoverySection(Section):
    """Restarts, stops, hangs and numbers that are not finite."""

    actor_restarts: int = Field(default=5, ge=0)
    """How often in a row an actor that did nothing useful in between is started anew; after that the run goes on without it or stops."""
    learner_restarts: int = Field(default=3, ge=0)
    """How often in a row the learner gang is started anew without a new committed checkpoint in between."""
    backoff_s: float = Field(default=1.0, ge=0)
    """Wait before the second restart in a row, seconds; doubled with each further one up to 60. The first one is not waited for."""
    grace_s: float = Field(default=30.0, ge=0)
    """How long a stop (SIGTERM, Ctrl-C, a drained node) may take to finish or abandon the step and commit a checkpoint, seconds."""
    drain_poll_s: float = Field(default=5.0, gt=0)
    """How often the cluster is asked for nodes that will be taken away, seconds."""
    hang_s: float = Field(default=900.0, gt=0)
    """An actor's answer that is waited for longer is reported as a hang, with the stacks of all actors, seconds."""
    on_hang: Literal["warn", "abort"] = "warn"
    """warn: go on waiting; abort: kill the actor that does not answer, which then is treated as dead."""
    nonfinite_steps: int = Field(default=3, ge=1)
    """Updates in a row that may be skipped because loss or gradient is not finite; then the run stops and keeps the batch."""
    alarms: AlarmSection = AlarmSection()
    """Warnings about training itself."""
