"""Taking back a jump that turns out bad: learner, engines and trajectory go back to the checkpoint that was jumped from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from next_ray.clock import Clock
from next_ray.config import Config
from next_ray.ports import Stages
from next_ray.progress import Progress
from next_ray.serving import Serving
from next_ray.types import RollbackRecord
from next_ray.watch import Fall, fall, found_bad, is_watched, sums_of


@dataclass(frozen=True)
class Rollback:
    """Watches the steps after a jump: `note` after each, then, when `due` says so, `go_back`.

    All that it knows is in the run's progress, so that a resumed run watches on. Until the loop has committed the step's checkpoint, a
    driver that dies leaves the checkpoints as they were; the next one makes the last steps again, and the same decision if they turn out
    the same.
    """

    config: Config
    stages: Stages
    progress: Progress
    serving: Serving
    clock: Clock

    def note(self, accuracies: Sequence[float]) -> None:
        """Keep what the prompts of the step just made earned, each the share of its completions that are correct."""
        progress, cfg = self.progress, self.config.extrapolation.after_jump
        if not self.config.extrapolation.enabled or cfg.watch_steps == 0:
            return
        sums = sums_of(accuracies)
        progress.recent = [*progress.recent, sums][-cfg.watch_steps :]
        if progress.jumps and is_watched(progress.jumps[-1], cfg):
            jump = progress.jumps[-1]
            self._amend_jump({"since": [*jump["since"], sums]})

    def due(self) -> Fall | None:
        """The fall for which the last jump is to be taken back, if the step just made was watched and shows one.

        As many steps without finite numbers as would stop the run are reason enough.
        """
        if not self.progress.jumps:
            return None
        jump, cfg = self.progress.jumps[-1], self.config.extrapolation.after_jump
        since = jump.get("since", ())
        if not jump.get("before") or not since or "rolled_back" in jump or jump["step"] + len(since) != self.progress.step:
            return None
        if self.progress.nonfinite >= self.config.recovery.nonfinite_steps:
            return fall(jump["before"], since)
        return found_bad(jump, cfg)

    async def go_back(self, found: Fall) -> RollbackRecord:
        """Let learner and engines go on from the checkpoint before the jump, as a new version and a new trajectory."""
        progress, stages = self.progress, self.stages
        jump = progress.jumps[-1]
        reason = self._reason(found)
        with self.clock.phase("roll back"):
            policy = await stages.learner.restore(await stages.archive.state(jump["from"]))
            progress.version, self.serving.current = progress.version + 1, policy
            await self.serving.serve()
            await stages.trajectory.restart()
        progress.begin_trajectory()
        progress.nonfinite = 0
        self._amend_jump({"rolled_back": progress.step, "why": reason})
        return RollbackRecord(
            step=progress.step,
            jump_step=jump["step"],
            candidate=jump["candidate"],
            returned_to=jump["from"],
            num_steps=found.steps,
            accuracy_before=found.before,
            accuracy_since=found.since,
            p_value=found.p_value,
            reason=reason,
        )

    async def amend_attempt(self, at: Progress) -> None:
        """Let the record of an attempt that was taken back at this very checkpoint say so; a resumed run repeats it."""
        if at.is_reverted:
            jump = at.jumps[-1]
            await self.stages.archive.amend(f"attempts/{jump['step']:08d}", {name: jump[name] for name in ("rolled_back", "why")})

    def _reason(self, found: Fall) -> str:
        if self.progress.nonfinite >= self.config.recovery.nonfinite_steps:
            return f"Loss or gradient were not finite in {self.progress.nonfinite} steps in a row after it."
        steps = "the step" if found.steps == 1 else f"the {found.steps} steps"
        return (
            f"The accuracy of the training completions fell from {found.before:.3f} in {steps} before it to {found.since:.3f} in {steps} "
            f"since (p = {found.p_value:.1g})."
        )

    def _amend_jump(self, content: Mapping[str, Any]) -> None:
        """Checkpoints under way hold the old list: nothing in it may change."""
        self.progress.jumps = [*self.progress.jumps[:-1], {**self.progress.jumps[-1], **content}]
