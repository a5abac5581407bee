"""What a store says of a run, as plain data: how far it is, how good, how large, and who writes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from next_ray.report.rows import interval
from next_ray.store.checkpoints import CheckpointStore
from next_ray.store.layout import SUMMARY
from next_ray.store.lease import read_writer
from next_ray.types import Manifest

RUNNING, FINISHED, STOPPED, DAMAGED = "running", "finished", "stopped", "damaged"


@dataclass(frozen=True)
class RunFacts:
    """A row of `next-ray runs list`.

    Args:
        run: its name.
        steps: RL steps of the newest checkpoint, 0 before the first.
        last_checkpoint: its id.
        committed_at: when, UTC.
        accuracy: held-out avg@k of the newest evaluation, `mean`, `low`, `high`; None before the first one.
        size_bytes: of everything below the run's folder.
        state: running (a driver holds the lease), finished (the final table is there), stopped, or damaged (cannot be read).
        detail: who writes it, or what is wrong.
    """

    run: str
    steps: int
    last_checkpoint: str | None
    committed_at: str | None
    accuracy: dict[str, float] | None
    size_bytes: int
    state: str
    detail: str

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def facts_of(store: CheckpointStore) -> RunFacts:
    """Read them; raises `StoreError` for what is damaged."""
    size_bytes = sum(entry.size_bytes for entry in store.storage.entries(store.run))
    latest = store.latest()
    holder = read_writer(store.storage, store.run)
    summary = final_table(store, latest)
    state = RUNNING if holder else FINISHED if summary else STOPPED
    return RunFacts(
        run=store.run,
        steps=latest.step if latest else 0,
        last_checkpoint=latest.id if latest else None,
        committed_at=latest.created_at if latest else None,
        accuracy=_accuracy(store, latest, summary),
        size_bytes=size_bytes,
        state=state,
        detail=holder.describe() if holder else "",
    )


def final_table(store: CheckpointStore, latest: Manifest | None) -> dict[str, Any] | None:
    """The final table, if it was made after the newest checkpoint."""
    summary = store.get_json(SUMMARY)
    if not isinstance(summary, dict) or latest is None:
        return None
    steps = [model["steps"] for model in summary.get("models", [])]
    return summary if steps and steps[-1] >= latest.step else None


def _accuracy(store: CheckpointStore, latest: Manifest | None, summary: Mapping[str, Any] | None) -> dict[str, float] | None:
    if summary:
        return dict(summary["models"][-1]["avg_at_k"])
    rows = store.read_table("metrics", latest.step) if latest else []
    found = [row for row in rows if row.get("kind") == "evaluation"]
    return interval(found[-1], "avg_at_k") if found else None
