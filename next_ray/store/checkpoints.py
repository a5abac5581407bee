"""Checkpoints of one run: committed by a manifest that is written last, visible through manifests only, verified when read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from next_ray.errors import CorruptCheckpointError, LeaseError, StoreError
from next_ray.store import layout, retention
from next_ray.store.deleting import wait_for_deletions
from next_ray.store.faults import ConflictError, MissingObjectError, TooLargeError
from next_ray.store.lease import LOST_REMEDY, read_holder
from next_ray.store.manifest import MAX_MANIFEST_BYTES, checkpoint_id, decode, encode, id_of, kind_of, manifest_path, order, remedy
from next_ray.store.records import Records
from next_ray.store.rereading import reread
from next_ray.store.storage import Storage
from next_ray.store.tables import Tables
from next_ray.store.tensors import (
    decode_adapter,
    decode_moments,
    decode_part,
    decode_scalars,
    decode_weights,
    encode_state,
    part_name,
    rank_and_scale,
)
from next_ray.types import Adapter, CheckpointKind, FullPart, LearnerState, Manifest, ObjectEntry, Weights

RESUMABLE = frozenset({CheckpointKind.TRAINED, CheckpointKind.JUMPED, CheckpointKind.REVERTED})


class CheckpointStore:
    """The store of `run` below `storage` (a `Storage` or its URL). Holds configuration only and can be pickled."""

    def __init__(self, storage: Storage | str, run: str, endpoint_url: str | None = None) -> None:
        self.storage = Storage(storage, endpoint_url) if isinstance(storage, str) else storage
        self.run = layout.check_run(run)
        self._tables = Tables(self.storage, run)
        self._records = Records(self.storage, run)

    @property
    def url(self) -> str:
        """Where the run lies."""
        return f"{self.storage.url}/{self.run}"

    def check_access(self) -> None:
        """Fail within seconds, with one paragraph, when the run could not be written; see `Storage.check_access`."""
        self.storage.check_access()

    def commit(
        self,
        step: int,
        kind: CheckpointKind,
        state: LearnerState,
        parents: Sequence[str],
        base_fingerprint: str,
        metadata: Mapping[str, Any],
        lease_token: str | None = None,
    ) -> Manifest:
        """Store a state, then its manifest; the first commit of a step and kind stands and is returned to any repetition.

        Args:
            step: RL steps done.
            kind: how the checkpoint came to be.
            state: adapter or parts of full weights, moments and scalars; moments and scalars may be empty. Parts are written one by one.
            parents: ids of the checkpoints it was made from.
            base_fingerprint: fingerprint of the base model.
            metadata: JSON data, at most a few MiB.
            lease_token: `Lease.token`; the commit is refused when another driver holds the run by now.

        Raises:
            LeaseError: the lease was lost. ValueError: state or metadata cannot be stored. StoreError: the storage failed.
        """
        checkpoint = checkpoint_id(step, CheckpointKind(kind))
        committed = self._find(checkpoint)
        if committed is not None:
            return committed
        rank, scale = rank_and_scale(state.adapter)
        manifest = Manifest(
            id=checkpoint,
            run=self.run,
            step=step,
            kind=CheckpointKind(kind),
            parents=tuple(parents),
            base_fingerprint=base_fingerprint,
            rank=rank,
            scale=scale,
            objects={},
            metadata=metadata,
            created_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        encode(manifest)  # what cannot be written is refused before anything is
        objects: dict[str, ObjectEntry] = {}
        for name, extension, data in encode_state(state):
            objects[name] = entry = _entry(extension, data)
            # Same name means same bytes, so this heals a damaged object and makes an old one young again for the sweep.
            self.storage.put(f"{self.run}/{entry.path}", data)
        document = encode(replace(manifest, objects=objects))
        self._fence(lease_token)
        with suppress(ConflictError):
            self.storage.create_exclusive(f"{self.run}/{manifest_path(checkpoint)}", document)
        self._complete(checkpoint, objects, state)
        return self.manifest(checkpoint)

    def ids(self) -> list[str]:
        """Ids of all committed checkpoints, in the order of `manifests`; no manifest is read."""
        found = (id_of(path) for path in self.storage.list(f"{self.run}/{layout.MANIFESTS}"))
        return sorted((checkpoint for checkpoint in found if checkpoint), key=order)

    def manifests(self) -> list[Manifest]:
        """All committed checkpoints by step, of the same step trained, jumped and reverted in this order."""
        found = (self._find(checkpoint) for checkpoint in self.ids())
        return [manifest for manifest in found if manifest is not None]

    def manifest(self, checkpoint: str) -> Manifest:
        """The committed checkpoint of that id; raises `StoreError` when there is none."""
        found = self._find(checkpoint)
        if found is None:
            raise StoreError(f"{self.url} has no checkpoint {checkpoint!r}; it holds {', '.join(self.ids()) or 'none'}.")
        return found

    def latest(self, skip: AbstractSet[str] = frozenset()) -> Manifest | None:
        """The checkpoint to resume from: of the newest step, reverted before jumped before trained; None for a new run.

        A damaged checkpoint is not passed over silently: reading it raises. `skip` names ids to leave out deliberately.
        """
        for checkpoint in reversed(self.ids()):
            if checkpoint in skip or kind_of(checkpoint) not in RESUMABLE:
                continue
            found = self._find(checkpoint)
            if found is not None:
                return found
        return None

    def load_adapter(self, manifest: Manifest) -> Adapter:
        """The adapter, verified; raises `CorruptCheckpointError` naming the object, `StoreError` where all weights were trained."""
        if manifest.is_whole:
            raise StoreError(f"Checkpoint {manifest.id} of {self.url} holds full weights and no adapter: learner.mode was full.")
        data, origin = self._object(manifest, "adapter")
        return decode_adapter(data, manifest.scale, origin)

    def load_state(self, manifest: Manifest) -> LearnerState:
        """Everything the learners need, verified; raises `CorruptCheckpointError` naming the object."""
        scalars = decode_scalars(*self._object(manifest, "scalars")) if "scalars" in manifest.objects else {}
        if manifest.is_whole:
            return LearnerState(adapter={}, moments={}, scalars=scalars, parts=self._parts(manifest))
        adapter = self.load_adapter(manifest)
        moments: Mapping[str, Any] = {}
        if "moments" in manifest.objects:
            data, origin = self._object(manifest, "moments")
            moments = decode_moments(data, adapter, origin)
        return LearnerState(adapter=adapter, moments=moments, scalars=scalars)

    def load_weights(self, manifest: Manifest) -> Iterator[Weights]:
        """Full weights, verified, part by part as they are asked for; none where an adapter was trained."""
        number = 0
        while (name := part_name("weights", number)) in manifest.objects:
            yield decode_weights(*self._object(manifest, name))
            number += 1

    def _parts(self, manifest: Manifest) -> Iterator[FullPart]:
        for number, weights in enumerate(self.load_weights(manifest)):
            name = part_name("moments", number)
            yield decode_part(weights, *self._object(manifest, name)) if name in manifest.objects else FullPart(weights, {})

    def verify(self, manifest: Manifest) -> None:
        """Read every object of a checkpoint and compare size and sha256; raises `CorruptCheckpointError`."""
        for name in manifest.objects:
            self._object(manifest, name)

    def retain(self, keep: int, protected: AbstractSet[str] = frozenset()) -> list[str]:
        """Delete checkpoints older than the newest `keep` trained ones, `protected` ids excepted; returns the deleted ids."""
        return retention.retain(self.storage, self.run, self.manifests(), self.manifests, keep, protected)

    def sweep(self, min_age_s: float) -> int:
        """Delete what no manifest names and is at least `min_age_s` old: remains of torn commits. Returns how many."""
        return retention.sweep(self.storage, self.run, self.manifests, min_age_s)

    def write_table(self, name: str, start_step: int, end_step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the rows of a range of steps as one parquet segment; see `Tables.write`."""
        self._tables.write(name, start_step, end_step, rows, self._committed_step())

    def read_table(self, name: str, up_to_step: int | None = None) -> list[dict[str, Any]]:
        """A table's rows up to a step; None: up to the newest committed step, beyond which rows are not trusted."""
        return self._tables.read(name, self._committed_step() if up_to_step is None else up_to_step)

    def claim_identity(self, identity: Mapping[str, Any]) -> None:
        """Bind the run directory to a model at the first start; later starts must agree. Raises `StoreError` with the differences."""
        self._records.claim_identity(identity)

    def identity(self) -> Mapping[str, Any]:
        """What the run directory is bound to; empty when nothing claimed it yet."""
        return self._records.identity()

    def read_object(self, manifest: Manifest, name: str) -> bytes:
        """An object's bytes, verified; raises `CorruptCheckpointError` naming it."""
        return self._object(manifest, name)[0]

    def put_json(self, path: str, content: Any) -> None:
        """Write or replace a small record."""
        self._records.put(path, content)

    def get_json(self, path: str) -> Any:
        """A record's content, None when there is none."""
        return self._records.get(path)

    def list_json(self, prefix: str = "") -> list[str]:
        """Paths of the records below a folder, as `get_json` takes them."""
        return self._records.list(prefix)

    def close(self) -> None:
        """Close connections."""
        self.storage.close()

    def __enter__(self) -> CheckpointStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _complete(self, checkpoint: str, objects: Mapping[str, ObjectEntry], state: LearnerState) -> None:
        """Put back what a deletion in another process took between an object's write and the manifest's, which protects it from now on."""
        wait_for_deletions(self.storage, self.run)
        missing = {name for name, entry in objects.items() if not self.storage.exists(f"{self.run}/{entry.path}")}
        if not missing or self.manifest(checkpoint).objects != objects:
            return
        if not state.adapter and not isinstance(state.parts, Sequence):  # parts that can be gone through once only
            self.storage.delete(f"{self.run}/{manifest_path(checkpoint)}")
            raise StoreError(f"{self.url}: somebody deleted objects of {checkpoint} while it was being committed. Commit it again.")
        for name, _, data in encode_state(state):
            if name in missing:
                self.storage.put(f"{self.run}/{objects[name].path}", data)

    def _find(self, checkpoint: str) -> Manifest | None:
        return reread(lambda: self._read_manifest(checkpoint))

    def _read_manifest(self, checkpoint: str) -> Manifest | None:
        path = f"{self.run}/{manifest_path(checkpoint)}"
        try:
            data = self.storage.get(path, MAX_MANIFEST_BYTES)
        except MissingObjectError:
            return None
        except TooLargeError as error:
            raise CorruptCheckpointError(f"{error} {remedy(f'{self.storage.url}/{path}')}") from None
        return decode(data, checkpoint, self.run, f"{self.storage.url}/{path}")

    def _committed_step(self) -> int:
        resumable = [checkpoint for checkpoint in self.ids() if kind_of(checkpoint) in RESUMABLE]
        return order(resumable[-1])[0] if resumable else -1

    def _fence(self, token: str | None) -> None:
        if token is None:
            return
        holder = read_holder(self.storage, self.run)
        if holder is None or not holder.held or holder.token != token:
            who = holder.describe() if holder and holder.held else "nobody"
            raise LeaseError(f"The lease of {self.url} was lost: {who} holds it now. {LOST_REMEDY}")

    def _object(self, manifest: Manifest, name: str) -> tuple[bytes, str]:
        """An object's verified bytes, and how to call it in errors."""
        return reread(lambda: self._read_object(manifest, name))

    def _read_object(self, manifest: Manifest, name: str) -> tuple[bytes, str]:
        entry = manifest.objects.get(name)
        marker = f"{self.url}/{manifest_path(manifest.id)}"
        if entry is None:
            raise CorruptCheckpointError(f"Checkpoint {manifest.id} names no {name}. {remedy(marker)}")
        origin = f"{self.url}/{entry.path} ({name} of checkpoint {manifest.id})"
        try:
            data = self.storage.get(f"{self.run}/{entry.path}", entry.size_bytes)
        except MissingObjectError:
            if self._find(manifest.id) is None:
                raise StoreError(f"Checkpoint {manifest.id} of {self.url} was deleted while it was being read; read a newer one.") from None
            raise CorruptCheckpointError(f"{origin} is missing. {remedy(marker)}") from None
        except TooLargeError:
            raise CorruptCheckpointError(f"{origin} has more than the {entry.size_bytes} bytes of its manifest. {remedy(marker)}") from None
        if len(data) != entry.size_bytes:
            raise CorruptCheckpointError(f"{origin} has {len(data)} bytes instead of {entry.size_bytes}. {remedy(marker)}")
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise CorruptCheckpointError(f"{origin} does not match its sha256. {remedy(marker)}")
        return data, origin


def _entry(extension: str, data: bytes) -> ObjectEntry:
    digest = hashlib.sha256(data).hexdigest()
    return ObjectEntry(path=f"{layout.OBJECTS}/{digest}.{extension}", size_bytes=len(data), sha256=digest)
