"""What the loop needs from the world, as Protocols. `actors/` implements them on Ray, tests with fakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from next_ray.types import (
    Adapter,
    EvaluationResult,
    Fault,
    JumpRecord,
    LearnerState,
    NewCheckpoint,
    Proposal,
    Ref,
    RolloutRequest,
    Sampling,
    Scores,
    Shard,
    StepRecord,
    UpdatePlan,
    UpdateResult,
)


class Rollout(Protocol):
    """The rollout engines."""

    async def generate(self, requests: Sequence[RolloutRequest], sampling: Sampling) -> list[Shard]:
        """Sample all requests; shards keep request order when concatenated. Cancelling the call drops them."""
        ...

    async def load(self, adapters: Mapping[int, Ref[Adapter]], in_force: int) -> None:
        """Make these adapter versions servable on every engine, and no other, without waiting for requests in flight.

        Those are finished under the version they were begun with, or with `rollout.in_flight: restart` begun anew under `in_force`.
        """
        ...

    async def reload(self, version: int, weights: Ref[Any] | None) -> None:
        """Serve other full weights (None: the base's) as `version` on every engine, and drop every adapter.

        Requests in flight are finished first, or with `rollout.in_flight: restart` begun anew under `version`.
        """
        ...


class Rewards(Protocol):
    """The verifiers."""

    async def score(self, shards: Sequence[Shard], num_samples: int = 0) -> Scores:
        """Judge every completion; `num_samples` of them are returned as text."""
        ...


class Learner(Protocol):
    """The learner gang."""

    async def update(self, plan: UpdatePlan) -> UpdateResult:
        """Run the plan's optimizer steps; refuses completions of another version than the plan's."""
        ...

    async def snapshot(self) -> Ref[LearnerState]:
        """A reference to the whole `LearnerState`."""
        ...

    async def adopt(self, adapter: Ref[Adapter]) -> UpdateResult:
        """Go on from another adapter, recompressed to the trained rank, or add it to the weights; metrics hold the truncation error."""
        ...


class Archive(Protocol):
    """The writer and reader of checkpoints and small records."""

    async def commit(self, new: NewCheckpoint) -> str:
        """Store state and loop progress, manifest last; returns the checkpoint's id."""
        ...

    async def table(self, name: str, start_step: int, end_step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows of the steps `start_step..end_step` to a table; repeating a segment replaces nothing that was committed."""
        ...

    async def adapter(self, checkpoint_id: str) -> Ref[Adapter]:
        """The adapter, or the full weights, of a committed checkpoint."""
        ...

    async def record(self, name: str, content: Mapping[str, Any]) -> None:
        """Keep a small JSON record (an evaluation, a gate decision) beside the checkpoints."""
        ...


class Trajectory(Protocol):
    """Delta workers and predictor."""

    def observe(self, index: int, step: int, policy: Ref[Any], accuracy: float | None, checkpoint_id: str) -> None:
        """Hand over checkpoint `index` (1-based), with its accuracy where known; deltas and fit go on in the background.

        `policy` is its adapter, or its learner state where all weights are trained. It is committed as `checkpoint_id`, from where it
        is read again when an actor dies.
        """
        ...

    async def propose(self, index: int) -> Proposal:
        """Wait until checkpoint `index` is digested, then make candidates."""
        ...

    async def restart(self) -> None:
        """Forget the trajectory: after a jump a new one begins."""
        ...

    async def background_s(self) -> Mapping[str, float]:
        """Seconds spent off the critical path so far, by kind of work (delta, fit)."""
        ...


class Reporter(Protocol):
    """Whatever shows and logs the run."""

    def phase(self, name: str) -> None:
        """A phase of the present step begins."""
        ...

    def step(self, record: StepRecord) -> None:
        """An RL step is done."""
        ...

    def evaluation(self, step: int, result: EvaluationResult) -> None:
        """A model was evaluated on the test prompts."""
        ...

    def jump(self, record: JumpRecord) -> None:
        """A jump was tried."""
        ...

    def fault(self, fault: Fault) -> None:
        """A fault was met, or recovered from."""
        ...

    def take_rows(self) -> list[dict[str, Any]]:
        """What was logged since the last call, as flat rows for the store's metrics table."""
        ...


@dataclass(frozen=True)
class Stages:
    """The stages of the loop."""

    rollout: Rollout
    rewards: Rewards
    learner: Learner
    archive: Archive
    trajectory: Trajectory
