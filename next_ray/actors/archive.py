"""The archive actor: writes and reads the store, so that no tensor passes through the driver."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray

from next_ray.actors import parts
from next_ray.actors.metrics import count_checkpoint, count_store
from next_ray.actors.observed import RunActor
from next_ray.actors.seats import Seat, asked
from next_ray.learn.kept_batch import TABLE, batch_rows
from next_ray.store.checkpoints import CheckpointStore
from next_ray.types import Adapter, Group, LearnerState, LoraFactors, NewCheckpoint, Ref, TrainedBatch


class ArchiveActor(RunActor):
    """Holds one `CheckpointStore`."""

    def __init__(self, store: CheckpointStore, base_fingerprint: str, keep: int | None, lease_token: str | None) -> None:
        self._store, self._fingerprint, self._keep, self._token = store, base_fingerprint, keep, lease_token

    def commit(self, new: NewCheckpoint, state: LearnerState) -> str:
        """Write a checkpoint, manifest last, then let go of those that nothing needs any more."""
        state = replace(state, parts=parts.FullParts(parts.refs_of(state)))
        with self._counted():
            manifest = self._store.commit(new.step, new.kind, state, new.parents, self._fingerprint, dict(new.progress), self._token)
            count_checkpoint(str(new.kind))
            if self._keep is not None:
                self._store.retain(self._keep, {*new.keep, *new.parents, manifest.id})
        return manifest.id

    def adapter(self, checkpoint_id: str) -> tuple[dict[str, LoraFactors] | list[parts.PartRefs], None]:
        """The adapter, or references to the full weights, of a committed checkpoint, verified."""
        with self._counted():
            manifest = self._store.manifest(checkpoint_id)
            if manifest.is_whole:
                return parts.put_weights(self._store.load_weights(manifest)), None
            return dict(self._store.load_adapter(manifest)), None

    def state(self, checkpoint_id: str) -> tuple[LearnerState, None]:
        """The learner state of a committed checkpoint, verified."""
        with self._counted():
            state = self._store.load_state(self._store.manifest(checkpoint_id))
        return replace(state, parts=parts.put_parts(state.parts)), None

    def write_table(self, name: str, start_step: int, end_step: int, rows: list[dict[str, Any]]) -> None:
        """Append a segment to a table."""
        with self._counted():
            self._store.write_table(name, start_step, end_step, rows)

    def record(self, name: str, content: Mapping[str, Any]) -> None:
        """Keep a small JSON record."""
        self._store.put_json(name, dict(content))

    def amend(self, name: str, content: Mapping[str, Any]) -> None:
        """Add to a record."""
        self._store.put_json(name, {**(self._store.get_json(name) or {}), **content})

    def keep_batch(self, step: int, batch: TrainedBatch, *groups: list[Group]) -> str:
        """Write the completions of a step as a table of their own; returns its URL."""
        self._store.write_table(TABLE, step, step, batch_rows(step, batch, groups))
        return f"{self._store.url}/tables/{TABLE}"

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Export what the block asks of the store, also when it fails."""
        try:
            yield
        finally:
            count_store(self._store.storage.usage)


@dataclass
class RayArchive:
    """The `Archive` port over the archive actor, which is started anew when it dies: all that it does bears repetition."""

    seat: Seat

    async def commit(self, new: NewCheckpoint) -> str:
        """Write a checkpoint. The state goes as an argument of its own, so that Ray hands the actor its content."""
        bare = replace(new, state=Ref(None))
        _, checkpoint = await asked(self.seat, lambda actor: [actor.commit.remote(bare, new.state.value)])
        return checkpoint

    async def adapter(self, checkpoint_id: str) -> Ref[Adapter]:
        """Read an adapter, or full weights, into the object store."""
        (ref, _), _ = await asked(self.seat, lambda actor: actor.adapter.options(num_returns=2).remote(checkpoint_id))
        return Ref(ref)

    async def state(self, checkpoint_id: str) -> Ref[LearnerState]:
        """Read a learner state into the object store."""
        (ref, _), _ = await asked(self.seat, lambda actor: actor.state.options(num_returns=2).remote(checkpoint_id))
        return Ref(ref)

    async def table(self, name: str, start_step: int, end_step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append a segment to a table."""
        if rows:
            plain = [dict(row) for row in rows]
            await asked(self.seat, lambda actor: [actor.write_table.remote(name, start_step, end_step, plain)])

    async def record(self, name: str, content: Mapping[str, Any]) -> None:
        """Keep a small JSON record."""
        await asked(self.seat, lambda actor: [actor.record.remote(name, content)])

    async def amend(self, name: str, content: Mapping[str, Any]) -> None:
        """Add to a record."""
        await asked(self.seat, lambda actor: [actor.amend.remote(name, content)])

    async def keep_batch(self, step: int, batch: TrainedBatch) -> str:
        """Write a step's completions. The groups go as arguments of their own, so that Ray hands the actor their content."""
        bare = replace(batch, shards=tuple(replace(shard, groups=Ref([])) for shard in batch.shards))
        groups = [shard.groups.value for shard in batch.shards]
        _, where = await asked(self.seat, lambda actor: [actor.keep_batch.remote(step, bare, *groups)])
        return where


ArchiveRemote = ray.remote(ArchiveActor)
