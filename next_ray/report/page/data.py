"""What the page shows of a run, as it was read from the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from next_ray.report.rows import ALARM, EVALUATION, FAULT, ROLLBACK, STEP, Row

if TYPE_CHECKING:
    from next_ray.inspect.analysis import Inspection
    from next_ray.inspect.plane import Plane


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint; `segment` is the step at which its trajectory began."""

    id: str
    step: int
    kind: str
    parents: tuple[str, ...]
    segment: int
    created_at: str
    size_bytes: int


@dataclass(frozen=True)
class Weights:
    """What was measured on the adapters.

    Args:
        inspection: of one trajectory, the one that the first jump was tried from; None where there is too little of it.
        plane: checkpoints of the whole run in two dimensions; None where there are too few.
        notes: what was left out, and why.
    """

    inspection: Inspection | None = None
    plane: Plane | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunData:
    """One run.

    Args:
        name, url: of the run.
        model, rank: the base model's name, and the adapters' rank (0: all weights); None where the store does not say.
        fingerprint: the base model's; empty before the first checkpoint.
        checkpoints: by step, of one step trained before jumped before reverted.
        rows: of the metrics table (`report.rows`), by step.
        attempts: rows of attempted jumps.
        samples: rows of the samples table: step, prompt_id, prompt, completion, answer, reward.
        settings: the configuration of the newest start as a tree; empty for runs of versions that did not keep it.
        version, device: of the newest start.
        summary: `report.final.summary`'s data; None until the run has ended.
        scores: `report.final.prompt_scores`' data; None until then.
        weights: what was measured on the adapters.
        holder: who writes the run at the moment; None: nobody.
        notes: what could not be read.
    """

    name: str
    url: str
    model: str | None = None
    rank: int | None = None
    fingerprint: str = ""
    checkpoints: tuple[Checkpoint, ...] = ()
    rows: Sequence[Row] = ()
    attempts: Sequence[Row] = ()
    samples: Sequence[Mapping[str, Any]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""
    device: str = ""
    summary: Mapping[str, Any] | None = None
    scores: Mapping[str, Any] | None = None
    weights: Weights = field(default_factory=Weights)
    holder: str | None = None
    notes: tuple[str, ...] = ()

    def of_kind(self, kind: str) -> list[Row]:
        """The rows of one kind."""
        return [row for row in self.rows if row["kind"] == kind]

    @property
    def steps(self) -> list[Row]:
        """The rows of the RL steps."""
        return self.of_kind(STEP)

    @property
    def evaluations(self) -> list[Row]:
        """Evaluations made on the way."""
        return self.of_kind(EVALUATION)

    @property
    def alarms(self) -> list[Row]:
        """Warnings and jumps taken back."""
        return [row for row in self.rows if row["kind"] in (ALARM, ROLLBACK)]

    @property
    def faults(self) -> list[Row]:
        """Faults and recoveries; the summary knows the last ones too."""
        return list(self.summary["faults"]) if self.summary and "faults" in self.summary else self.of_kind(FAULT)

    @property
    def last_step(self) -> int:
        """The newest committed step."""
        return max((checkpoint.step for checkpoint in self.checkpoints), default=0)

    @property
    def planned(self) -> int | None:
        """`run.steps`, where known."""
        return self.setting("run.steps")

    @property
    def extrapolates(self) -> bool | None:
        """Whether jumps are tried; None where the configuration is not known and none was."""
        known = self.setting("extrapolation.enabled")
        return True if self.attempts and known is None else known

    @property
    def accepted(self) -> list[Row]:
        """Attempts that ended in a jump."""
        return [row for row in self.attempts if "accepted" in row]

    def setting(self, path: str) -> Any:
        """A value of the configuration by its dotted name; None where there is none."""
        found: Any = self.settings
        for part in path.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        return found
