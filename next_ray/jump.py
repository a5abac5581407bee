"""An attempt to jump: predict, judge the candidates beside the last checkpoint, adopt the best or go on as before."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from next_ray.clock import Clock
from next_ray.config import Config
from next_ray.extrapolate.gate import decide, prompt_means
from next_ray.extrapolate.screening import plan_rounds, survivors
from next_ray.ports import Stages
from next_ray.progress import Progress, Schedule, derive_seed
from next_ray.serving import Serving
from next_ray.stopping import Stop
from next_ray.types import Candidate, CheckpointKind, GateDecision, JumpRecord, NewCheckpoint, Prompt, ScreenedRow

BASELINE = ""
"""What the adapter in force is called beside the candidates."""


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
    stop: Stop

    async def attempt(self) -> JumpRecord:
        """Try to jump from the last checkpoint, which must be committed; a refusal leaves everything as it was."""
        progress, stages = self.progress, self.stages
        index = self.schedule.index(progress.step, progress.segment_start)
        assert index is not None
        async with self.stop.heeded():
            with self.clock.phase("candidates"):
                proposal = await stages.trajectory.propose(index)
            with self.clock.phase("gate"):
                decision = await self._judge(proposal.candidates)
        progress.tried = progress.step
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
        versions = await self.serving.host({BASELINE: self.serving.adapter, **{c.name: c.adapter for c in candidates}})
        baseline = versions.pop(BASELINE)
        finalists, screened = await self._screen(versions)
        matrices = await self._rewards(
            {BASELINE: baseline, **finalists}, self.gate_prompts[max((row.num_prompts for row in screened), default=0) :], "gate"
        )
        decision = decide(matrices.pop(BASELINE), matrices, gate, seed=derive_seed(self.config.run.seed, "gate-test", self.progress.step))
        return replace(decision, screened=screened)

    async def _screen(self, versions: Mapping[str, int]) -> tuple[Mapping[str, int], tuple[ScreenedRow, ...]]:
        """Halve the candidates round by round on the first gate prompts; the versions left, and what was left behind.

        The finalist's row is among the latter too, since the prompts up to its own were used to choose it.
        """
        scores: dict[str, list[float]] = {name: [] for name in versions}
        screened: list[ScreenedRow] = []
        for i, turn in enumerate(plan_rounds(len(versions), len(self.gate_prompts), self.config.extrapolation.gate.screening)):
            matrices = await self._rewards(
                {name: versions[name] for name in scores}, self.gate_prompts[turn.start : turn.stop], f"gate-screening-{i}"
            )
            for name, matrix in matrices.items():
                scores[name] += prompt_means(matrix, name).tolist()
            kept = survivors(scores, turn.kept)
            last = turn.kept == 1
            screened += [ScreenedRow(n, fmean(values), turn.stop) for n, values in scores.items() if last or n not in kept]
            scores = {name: scores[name] for name in kept}
        return {name: versions[name] for name in scores}, tuple(screened)

    async def _rewards(self, versions: Mapping[str, int], prompts: Sequence[Prompt], purpose: str) -> dict[str, Any]:
        samples, temperature = self.config.extrapolation.gate.samples, self.config.rollout.temperature
        return await self.serving.accuracy(prompts, versions, samples, temperature, purpose, self.progress.step)

    async def _adopt(self, chosen: Candidate) -> float:
        """Adopt the candidate in learner and engines and commit it; returns the recompression's truncation error."""
        progress, stages = self.progress, self.stages
        before = progress.last_checkpoint
        result = await stages.learner.adopt(chosen.adapter)
        progress.version, self.serving.current = progress.version + 1, result.adapter
        await self.serving.serve()
        jump = {"step": progress.step, "candidate": chosen.name, "method": chosen.method, "alpha": chosen.alpha, "from": before}
        jump |= {"parents": list(progress.trajectory), "moments": self.config.extrapolation.after_jump.moments}
        progress.segment_start, progress.trajectory, progress.correct = progress.step, [], []
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
