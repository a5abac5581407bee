"""An attempt to jump: predict, judge the candidates beside the last checkpoint, adopt the best or go on as before."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from next_ray.clock import Clock
from next_ray.config import Config
from next_ray.extrapolate.gate import decide
from next_ray.ports import Stages
from next_ray.progress import Progress, Schedule, derive_seed
from next_ray.serving import Serving
from next_ray.types import Candidate, CheckpointKind, GateDecision, JumpRecord, NewCheckpoint, Prompt


@dataclass(frozen=True)
class Extrapolation:
    """The extrapolation of a run: `attempt` after every checkpoint at which the schedule has one due."""

    config: Config
    stages: Stages
    gate_prompts: Sequence[Prompt]
    schedule: Schedule
    progress: Progress
    serving: Serving
    clock: Clock

    async def attempt(self) -> JumpRecord:
        """Try to jump from the last checkpoint, which must be committed; a refusal leaves everything as it was."""
        progress, stages = self.progress, self.stages
        index = self.schedule.index(progress.step, progress.segment_start)
        assert index is not None
        with self.clock.phase("candidates"):
            proposal = await stages.trajectory.propose(index)
        progress.tried = progress.step
        with self.clock.phase("gate"):
            decision = await self._judge(proposal.candidates)
        chosen = next((c for c in proposal.candidates if c.name == decision.accepted), None)
        stats = dict(proposal.stats)
        if chosen is None:
            with self.clock.phase("load"):
                await self.serving.serve()
        else:
            with self.clock.phase("adopt"):
                stats["truncation_error"] = await self._adopt(chosen)
        record = JumpRecord(
            step=progress.step,
            decision=decision,
            backtest=proposal.backtest,
            evidence=proposal.evidence,
            abstained=proposal.abstained,
            times=self.clock.take(),
            stats=stats,
            method=chosen.method if chosen else None,
            alpha=chosen.alpha if chosen else None,
        )
        await stages.archive.record(f"attempts/{progress.step:08d}", _plain(record))
        return record

    async def _judge(self, candidates: Sequence[Candidate]) -> GateDecision:
        """Judge the candidates against the adapter in force on the gate prompts."""
        gate = self.config.extrapolation.gate
        if not candidates:
            return GateDecision(None, "No extrapolator proposed anything.", None, ())
        if gate.kind == "none":
            return decide((), {c.name: () for c in candidates}, gate, seed=0)
        models = {"": self.serving.adapter, **{c.name: c.adapter for c in candidates}}
        step, temperature = self.progress.step, self.config.rollout.temperature
        matrices = await self.serving.accuracy(self.gate_prompts, models, gate.samples, temperature, "gate", step)
        baseline = matrices.pop("")
        return decide(baseline, matrices, gate, seed=derive_seed(self.config.run.seed, "gate-test", step))

    async def _adopt(self, chosen: Candidate) -> float:
        """Adopt the candidate in learner and engines and commit it; returns the recompression's truncation error."""
        progress, stages = self.progress, self.stages
        before = progress.last_checkpoint
        result = await stages.learner.adopt(chosen.adapter)
        progress.version, self.serving.current = progress.version + 1, result.adapter
        await self.serving.serve()
        jump = {"step": progress.step, "candidate": chosen.name, "method": chosen.method, "alpha": chosen.alpha, "from": before}
        jump |= {"parents": list(progress.trajectory), "moments": self.config.extrapolation.after_jump.moments}
        progress.segment_start, progress.trajectory = progress.step, []
        progress.jumps = [*progress.jumps, jump]
        await stages.trajectory.restart()
        state = await stages.learner.snapshot()
        parents = (before,) if before else ()
        new = NewCheckpoint(progress.step, CheckpointKind.JUMPED, state, parents, progress.to_json(), tuple(progress.kept()))
        progress.last_checkpoint = jump["to"] = await stages.archive.commit(new)
        return result.metrics.get("truncation_error", 0.0)


def _plain(record: JumpRecord) -> dict[str, Any]:
    """JSON data; a number that JSON lacks becomes null."""
    return json.loads(json.dumps(asdict(record)), parse_constant=lambda _: None)
