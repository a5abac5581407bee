"""Our own checkpoint store as a source: one trajectory of a run, read from its immutable objects.

A run that jumped has several trajectories; a jump ends one and begins the next. Objects of a local store are read where they lie,
those of a bucket are copied once, under their hash, into the cache that prepared models are kept in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from next_ray.checkpoints.adapters import StoredAdapter, pair_up
from next_ray.checkpoints.hashes import file_sha256
from next_ray.checkpoints.headers import open_safetensors
from next_ray.config import ModelSection
from next_ray.errors import CheckpointFormatError, ModelError
from next_ray.models.folder import cache_root, publish
from next_ray.models.resolve import not_cached, prepare_model
from next_ray.store.checkpoints import CheckpointStore
from next_ray.types import CheckpointKind, Manifest


@dataclass(frozen=True)
class StoredRun:
    """One trajectory of a run: its committed checkpoints with their adapters, and the model it was trained from.

    Where all weights were trained there are no adapters, and `folders` makes model folders of the checkpoints.
    """

    manifests: tuple[Manifest, ...]
    adapters: tuple[StoredAdapter, ...]
    url: str
    base_name: str
    base_fingerprint: str
    notes: tuple[str, ...]


def store_of(path: str, endpoint_url: str | None) -> CheckpointStore:
    """The store of a run that is given by its URL or its folder; the caller closes it."""
    url = path if "://" in path else f"file://{Path(path).absolute()}"
    root, _, run = url.rstrip("/").rpartition("/")
    return CheckpointStore(root, run, endpoint_url)


def open_run(path: str, segment: int | None, endpoint_url: str | None) -> StoredRun:
    """Read a run's manifests and the headers of one trajectory's adapters, verified.

    Args:
        path: `file:///folder/run`, `s3://bucket/prefix/run` or the run's folder.
        segment: the step at which the trajectory began (0, or that of a jump); None: the newest.
        endpoint_url: S3 server other than AWS.

    Raises:
        StoreError: the store cannot be read. CheckpointFormatError: there is no such trajectory, or its base changed.
    """
    with store_of(path, endpoint_url) as store:
        trained = [manifest for manifest in store.manifests() if manifest.kind is CheckpointKind.TRAINED]
        if not trained:
            raise CheckpointFormatError(f"{store.url} holds no trained checkpoint. Give the run's URL, store.url followed by run.name.")
        chosen, notes = _segment(trained, segment, store.url)
        fingerprints = {manifest.base_fingerprint for manifest in chosen}
        if len(fingerprints) > 1:
            raise CheckpointFormatError(f"{store.url}: the checkpoints were trained from different base models.")
        name = store.identity().get("model")
        return StoredRun(
            manifests=tuple(chosen),
            adapters=() if chosen[0].is_whole else tuple(_adapter(store, manifest) for manifest in chosen),
            url=store.url,
            base_name=name if isinstance(name, str) else "",
            base_fingerprint=fingerprints.pop(),
            notes=tuple(notes),
        )


def prepared_base(run: StoredRun) -> str | None:
    """The folder of the model that a run was trained from, where that is here under the run's name for it."""
    try:
        return prepare_model(ModelSection(name=run.base_name), not_cached).path
    except ModelError:
        return None


def folders(run: StoredRun, base: Path, endpoint_url: str | None) -> list[Path]:
    """The checkpoints of full weights as float32 model folders in the cache, which is read once a module and checkpoint."""
    from next_ray.checkpoints.whole import cached_model  # adapters need not wait for torch

    with store_of(run.url, endpoint_url) as store:
        return [cached_model(store, manifest, base) for manifest in run.manifests]


def _segment(trained: Sequence[Manifest], segment: int | None, url: str) -> tuple[list[Manifest], list[str]]:
    by_start: dict[int, list[Manifest]] = {}
    for manifest in trained:
        by_start.setdefault(_start(manifest.metadata), []).append(manifest)
    start = max(by_start) if segment is None else segment
    if start not in by_start:
        raise CheckpointFormatError(
            f"{url} has no trajectory from step {start}; trajectories begin at {', '.join(map(str, sorted(by_start)))}."
        )
    others = [f"{len(found)} checkpoints from step {begin}" for begin, found in sorted(by_start.items()) if begin != start]
    note = f"The run jumped: this is the trajectory from step {start}; others have {', '.join(others)} (choose with segment)."
    return by_start[start], [note] if others else []


def _start(metadata: Mapping[str, object]) -> int:
    start = metadata.get("segment_start", 0)
    return start if isinstance(start, int) else 0


def _adapter(store: CheckpointStore, manifest: Manifest) -> StoredAdapter:
    entry = manifest.objects.get("adapter")
    if entry is None:
        raise CheckpointFormatError(f"{store.url}: checkpoint {manifest.id} names no adapter.")
    local = Path(store.storage.root) / store.run / entry.path
    if store.storage.scheme != "file":
        local = _copied(store, manifest, entry.sha256)
    if file_sha256(local) != entry.sha256:
        raise CheckpointFormatError(f"{local} (adapter of checkpoint {manifest.id}) does not match its sha256. Restore it from a copy.")
    return pair_up(open_safetensors(local), lambda _: manifest.scale)


def _copied(store: CheckpointStore, manifest: Manifest, sha256: str) -> Path:
    """A bucket's object in the cache."""

    def fetch(draft: Path) -> None:
        (draft / "adapter.safetensors").write_bytes(store.read_object(manifest, "adapter"))

    try:
        return publish(cache_root(None) / "objects" / sha256, fetch) / "adapter.safetensors"
    except OSError as error:
        raise CheckpointFormatError(
            f"{store.url}: the adapter of checkpoint {manifest.id} cannot be copied to {cache_root(None)}: {error.strerror or error}. Set "
            "NEXT_RAY_CACHE to a folder with room."
        ) from None
