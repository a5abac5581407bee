"""What may be deleted: checkpoints that have successors, and what no manifest names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet

from next_ray.store.deleting import deleting
from next_ray.store.layout import OBJECTS
from next_ray.store.manifest import manifest_path
from next_ray.store.storage import Storage
from next_ray.types import CheckpointKind, Manifest


def retain(
    storage: Storage,
    run: str,
    committed: Sequence[Manifest],
    survivors: Callable[[], Sequence[Manifest]],
    keep: int,
    protected: AbstractSet[str],
) -> list[str]:
    """Delete the checkpoints that `expendable` names: manifests first, so that no reader starts on a vanishing one.

    Objects go afterwards, and only those that no manifest names which is still there then (`survivors` reads them afresh). Nothing is
    done while another process deletes; see `deleting` for what protects a commit under way in another process.
    """
    doomed = expendable(committed, keep, protected)
    if not doomed:
        return []
    with deleting(storage, run) as delete:
        if delete is None:
            return []
        for manifest in doomed:
            delete(f"{run}/{manifest_path(manifest.id)}")
        live = _named(survivors())
        for path in sorted(_named(doomed) - live):
            delete(f"{run}/{path}")
    return [manifest.id for manifest in doomed]


def expendable(committed: Sequence[Manifest], keep: int, protected: AbstractSet[str]) -> list[Manifest]:
    """Checkpoints of steps before the oldest of the newest `keep` trained ones, oldest first, without the `protected`."""
    if keep < 1:
        raise ValueError(f"keep={keep}: at least one checkpoint is kept")
    trained = sorted(m.step for m in committed if m.kind is CheckpointKind.TRAINED)
    if not trained:
        return []
    oldest_kept = trained[-min(keep, len(trained))]
    return [m for m in committed if m.step < oldest_kept and m.id not in protected]


def sweep(storage: Storage, run: str, committed: Callable[[], Sequence[Manifest]], min_age_s: float) -> int:
    """Delete objects that no manifest names and remains of interrupted writes, all at least `min_age_s` old.

    Objects are listed before the manifests are read, so a commit in between can only make more of them live; the age spares a commit
    under way having to write its objects again. Nothing is done while another process deletes.
    """
    with deleting(storage, run) as delete:
        if delete is None:
            return 0
        objects = storage.entries(f"{run}/{OBJECTS}")
        live = {f"{run}/{path}" for path in _named(committed())}
        dead = [entry for entry in objects if entry.key not in live and entry.age_s >= min_age_s]
        for entry in dead:
            delete(entry.key)
    return len(dead) + storage.sweep_torn(run, min_age_s)


def _named(manifests: Sequence[Manifest]) -> set[str]:
    return {entry.path for manifest in manifests for entry in manifest.objects.values()}
