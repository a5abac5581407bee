"""How far the loop is and when what is due: plain data, saved with every checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from next_ray.config import Config, ExtrapolationSection
from next_ray.types import CheckpointKind, Manifest


@dataclass
class Progress:
    """The loop's own state: committed with each checkpoint, enough to go on exactly.

    `version` is the adapter version in force (it grows by one with each update and each jump); `segment_start` the step at
    which the present trajectory began (0, or that of the last jump); `tried` the last step at which a jump was tried;
    `trajectory` the ids of the present trajectory's checkpoints, in order; `correct` the share of correct training completions of each
    step since `segment_start`, as long as checkpoints are observed; `evaluated` the last step after which models were evaluated.
    """

    step: int = 0
    version: int = 0
    cursor: Mapping[str, Any] = field(default_factory=lambda: {"epoch": 0, "offset": 0})
    segment_start: int = 0
    tried: int = 0
    updates: int = 0
    last_checkpoint: str | None = None
    trajectory: list[str] = field(default_factory=list)
    jumps: list[dict[str, Any]] = field(default_factory=list)
    correct: list[float] = field(default_factory=list)
    evaluated: int = 0

    def kept(self) -> list[str]:
        """Checkpoints that retention must spare: the trajectory's, and both ends of every jump."""
        return [*self.trajectory, *(jump[end] for jump in self.jumps for end in ("from", "to") if jump.get(end))]

    def note(self, accuracy: float) -> None:
        """Keep the accuracy of the step that was just made, if none before it is missing (as in runs begun before there was `correct`)."""
        if len(self.correct) == self.step - self.segment_start - 1:
            self.correct = [*self.correct, accuracy]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)


def resumed(manifest: Manifest, schedule: Schedule) -> Progress:
    """The progress that a committed checkpoint stands for, the checkpoint itself included."""
    progress = Progress(**manifest.metadata)
    progress.last_checkpoint = manifest.id
    if manifest.kind is CheckpointKind.JUMPED:
        progress.jumps = [*progress.jumps[:-1], {**progress.jumps[-1], "to": manifest.id}]
    elif schedule.index(progress.step, progress.segment_start) is not None and schedule.observed(progress):
        progress.trajectory = [*progress.trajectory, manifest.id]
    return progress


def progress_at(latest: Manifest | None, config: Config) -> Progress:
    """Where a run stands at a checkpoint; a new run's beginning at None."""
    return resumed(latest, Schedule(config.extrapolation, config.run.steps)) if latest else Progress()


@dataclass(frozen=True)
class Schedule:
    """When checkpoints and jumps are due; steps count from 1, checkpoint indices from 1 within a trajectory."""

    config: ExtrapolationSection
    total_steps: int

    def index(self, step: int, segment_start: int) -> int | None:
        """The checkpoint index of a step, or None when the step is none of the trajectory's."""
        since = step - segment_start
        return since // self.config.interval_steps if since > 0 and since % self.config.interval_steps == 0 else None

    def accuracy(self, progress: Progress, index: int) -> float | None:
        """Share of correct training completions of the steps between checkpoints `index` - 1 and `index`; None when it was not kept.

        Each was sampled by the policy before its step (or, ahead of the learner, some updates older), so that it is the accuracy
        of the policy half an interval before the checkpoint: the same lag for all.
        """
        every = self.config.interval_steps
        found = progress.correct[(index - 1) * every : index * every]
        return sum(found) / every if len(found) == every else None

    def checkpoint_due(self, step: int, segment_start: int) -> bool:
        """A checkpoint of the trajectory, or the last one of the run."""
        return step == self.total_steps or self.index(step, segment_start) is not None

    def attempt_due(self, progress: Progress) -> bool:
        """A jump is to be tried after this step and has not been yet."""
        index = self.index(progress.step, progress.segment_start)
        first, every = self.config.checkpoints, self.config.repeat_every
        if not self.config.enabled or index is None or progress.tried == progress.step or progress.step >= self.total_steps:
            return False
        if progress.jumps and every is None:
            return False
        return index == first or (every is not None and index > first and (index - first) % every == 0)

    def observed(self, progress: Progress) -> bool:
        """Whether later attempts can still use this trajectory's checkpoints."""
        if not self.config.enabled:
            return False
        if self.config.repeat_every is not None:
            return True
        return not progress.jumps and progress.step <= self.config.interval_steps * self.config.checkpoints


def derive_seed(*parts: object) -> int:
    """A 31-bit seed that depends on all parts and nothing else."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") & 0x7FFFFFFF
