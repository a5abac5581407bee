"""In-memory stages for tests of the loop: a "model" whose skill is one number, learned by one number a step."""

from __future__ import annotations

import copy
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from next_ray.errors import StaleCompletionError
from next_ray.types import (
    BASE_VERSION,
    Adapter,
    Alarm,
    Candidate,
    Completion,
    FinishReason,
    Group,
    GroupSize,
    LearnerState,
    LoraFactors,
    Manifest,
    NewCheckpoint,
    Prompt,
    Proposal,
    Ref,
    RolloutRequest,
    Sample,
    Sampling,
    Scores,
    Shard,
    TrainedBatch,
    UpdatePlan,
    UpdateResult,
)

MODULE = "model.layers.0.self_attn.q_proj"


def make_adapter(skill: float) -> dict[str, LoraFactors]:
    """A rank-1 adapter that holds one number."""
    return {MODULE: LoraFactors(a=np.ones((1, 2), np.float32), b=np.full((2, 1), skill, np.float32), scale=1.0)}


def skill_of(adapter: Adapter) -> float:
    """The number back."""
    return float(adapter[MODULE].b[0, 0])


def point_skill(policy: Any) -> float:
    """The number in an adapter or in a learner state."""
    return skill_of(policy.adapter if isinstance(policy, LearnerState) else policy)


def make_prompts(num: int, prefix: str = "p") -> list[Prompt]:
    """Prompts whose answer is always `yes`."""
    return [Prompt(f"{prefix}{i}", ({"role": "user", "content": f"{prefix}{i}?"},), "yes", "exact") for i in range(num)]


@dataclass
class FakeRollout:
    """Answers `yes` with a probability that is the served adapter's skill, from the request's seed alone."""

    base_skill: float = 0.3
    served: dict[int, float] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    weights: tuple[int, float] = (BASE_VERSION, 0.0)

    async def load(self, adapters: Mapping[int, Ref[Adapter]], in_force: int) -> None:
        self.log.append("load " + ",".join(map(str, sorted(adapters))))
        self.served = {version: skill_of(ref.value) for version, ref in adapters.items()}

    async def reload(self, version: int, weights: Ref[Any] | None) -> None:
        self.log.append(f"reload {version}")
        self.served = {}
        self.weights = (version, 0.0 if weights is None else skill_of(weights.value))

    async def generate(self, requests: Sequence[RolloutRequest], sampling: Sampling) -> list[Shard]:
        self.log.append(f"generate {len(requests)} at {sorted({r.version for r in requests})}")
        half = len(requests) // 2
        return [self._shard(part) for part in (requests[:half], requests[half:]) if part]

    def _shard(self, requests: Sequence[RolloutRequest]) -> Shard:
        groups = [self._group(r) for r in requests]
        sizes = tuple(
            GroupSize(2, (1,) * len(g.completions), tuple(c.version for c in g.completions), (False,) * len(g.completions)) for g in groups
        )
        return Shard(Ref(groups), sizes)

    def _group(self, request: RolloutRequest) -> Group:
        version, skill = self.weights
        skill += self.base_skill + (0.0 if request.version == version else self.served[request.version])
        draws = np.random.default_rng(request.seed).random(request.num_samples)
        completions = tuple(
            Completion(np.array([1], np.int32), np.zeros(1, np.float32), "yes" if d < skill else "no", FinishReason.STOP, request.version)
            for d in draws
        )
        return Group(request.prompt, np.array([2, 3], np.int32), completions)


class FakeRewards:
    """Exact match."""

    async def score(self, shards: Sequence[Shard], num_samples: int = 0) -> Scores:
        groups = [g for shard in shards for g in shard.groups.value]
        rewards = tuple(tuple(float(c.text == g.prompt.answer) for c in g.completions) for g in groups)
        shown = [
            Sample(g.prompt.id, g.prompt.messages[0]["content"], g.completions[0].text, g.prompt.answer, earned[0])
            for g, earned in zip(groups[:num_samples], rewards, strict=False)
        ]
        return Scores(rewards, {"ok": len(groups)}, tuple(shown))


@dataclass
class FakeLearner:
    """Skill grows by `rate` times the mean reward of each update."""

    rate: float = 0.01
    skill: float = 0.0
    updates: int = 0
    refuse_all: bool = False
    is_full: bool = False
    poisoned: Container[int] = ()
    """Updates, counted from 1 as they are asked for, whose gradient is not finite."""
    asked: int = 0

    async def update(self, plan: UpdatePlan) -> UpdateResult:
        groups = [g for shard in plan.shards for g in shard.value]
        if any(not plan.oldest_version <= c.version <= plan.version for g in groups for c in g.completions):
            raise StaleCompletionError("stale")
        self.asked += 1
        skipped = float(self.asked in self.poisoned)
        steps = 0.0 if self.refuse_all or skipped else 1.0
        if steps:
            self.skill += self.rate * float(np.mean([c.text == "yes" for g in groups for c in g.completions]))
            self.updates += 1
        return UpdateResult(Ref(make_adapter(self.skill)), {"optimizer_steps": steps, "skipped_nonfinite": skipped, "loss": self.skill})

    async def snapshot(self) -> Ref[LearnerState]:
        return Ref(LearnerState(make_adapter(self.skill), {}, {"updates": float(self.updates), "skill": self.skill}))

    async def adopt(self, adapter: Ref[Adapter]) -> UpdateResult:
        self.skill = skill_of(adapter.value) + (self.skill if self.is_full else 0.0)
        return UpdateResult(Ref(make_adapter(self.skill)), {"truncation_error": 0.125})

    async def restore(self, state: Ref[LearnerState]) -> Ref[Adapter]:
        self.skill, self.updates = state.value.scalars["skill"], int(state.value.scalars["updates"])
        return Ref(make_adapter(self.skill))

    @classmethod
    def restored(cls, state: LearnerState, rate: float) -> FakeLearner:
        return cls(rate, state.scalars["skill"], int(state.scalars["updates"]))


@dataclass
class FakeArchive:
    """Checkpoints in a list, committed at once."""

    committed: list[tuple[Manifest, LearnerState]] = field(default_factory=list)
    tables: list[tuple[int, int, list[Any]]] = field(default_factory=list)
    prompts: list[tuple[int, int, list[Any]]] = field(default_factory=list)
    samples: list[tuple[int, int, list[Any]]] = field(default_factory=list)
    records: dict[str, Any] = field(default_factory=dict)
    fail_at_step: int | None = None
    kept_batches: list[tuple[int, TrainedBatch]] = field(default_factory=list)

    async def commit(self, new: NewCheckpoint) -> str:
        if new.step == self.fail_at_step:
            raise OSError("disk full")
        progress = copy.deepcopy(dict(new.progress))
        manifest = Manifest(f"{new.step:04d}-{new.kind}", "r", new.step, new.kind, new.parents, "f", 1, 1.0, {}, progress, "")
        self.committed.append((manifest, copy.deepcopy(new.state.value)))
        return manifest.id

    async def adapter(self, checkpoint_id: str) -> Ref[Adapter]:
        return Ref(next(s.adapter for m, s in self.committed if m.id == checkpoint_id))

    async def state(self, checkpoint_id: str) -> Ref[LearnerState]:
        return Ref(next(s for m, s in self.committed if m.id == checkpoint_id))

    async def amend(self, name: str, content: Mapping[str, Any]) -> None:
        self.records[name] = {**self.records.get(name, {}), **content}

    async def keep_batch(self, step: int, batch: TrainedBatch) -> str:
        self.kept_batches.append((step, batch))
        return "the store"

    async def record(self, name: str, content: Mapping[str, Any]) -> None:
        self.records[name] = content

    async def table(self, name: str, start_step: int, end_step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        assert all(start_step <= row["step"] <= end_step for row in rows), "the store refuses such rows"
        kept = {"metrics": self.tables, "prompts": self.prompts, "samples": self.samples}[name]
        kept.append((start_step, end_step, list(rows)))


@dataclass
class FakeTrajectory:
    """Remembers what it saw; proposes the last adapter plus given gains, or (`beside`) the gains alone."""

    gains: Mapping[str, float] = field(default_factory=dict)
    beside: bool = False
    seen: list[tuple[int, int, float]] = field(default_factory=list)
    accuracies: list[float | None] = field(default_factory=list)
    restarts: int = 0

    def observe(self, index: int, step: int, policy: Ref[Any], accuracy: float | None, checkpoint_id: str) -> None:
        self.accuracies.append(accuracy)
        self.seen.append((index, step, point_skill(policy.value)))

    async def propose(self, index: int) -> Proposal:
        assert self.seen[-1][0] == index, "the last checkpoint must be digested before a proposal"
        last = 0.0 if self.beside else self.seen[-1][2]
        candidates = tuple(
            Candidate(n, n.split("@")[0], float(n.split("@")[1]), Ref(make_adapter(last + g))) for n, g in self.gains.items()
        )
        return Proposal(candidates, (), "no back test", {}, {})

    async def restart(self) -> None:
        self.restarts += 1
        self.seen = []

    async def background_s(self) -> Mapping[str, float]:
        return {"delta": 0.0, "fit": 0.0}


@dataclass
class FakeReport:
    """Keeps all records."""

    steps: list[Any] = field(default_factory=list)
    evaluations: list[Any] = field(default_factory=list)
    jumps: list[Any] = field(default_factory=list)
    rollbacks: list[Any] = field(default_factory=list)
    alarms: list[tuple[int, str]] = field(default_factory=list)
    faults: list[Any] = field(default_factory=list)
    _rows: list[dict[str, Any]] = field(default_factory=list)

    def phase(self, name: str) -> None:
        pass

    def step(self, record: Any) -> None:
        self.steps.append(record)
        self._rows.append({"step": record.step})

    def evaluation(self, step: int, result: Any) -> None:
        self.evaluations.append((step, result))
        self._rows += [{"step": step}] if step else []

    def jump(self, record: Any) -> None:
        self.jumps.append(record)

    def rollback(self, record: Any) -> None:
        self.rollbacks.append(record)
        self._rows.append({"step": record.step, "kind": "rollback"})

    def alarm(self, step: int, alarm: Alarm) -> None:
        self.alarms.append((step, alarm.name))

    def fault(self, fault: Any) -> None:
        self.faults.append(fault)

    def take_rows(self) -> list[dict[str, Any]]:
        rows, self._rows = self._rows, []
        return rows
