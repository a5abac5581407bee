"""The books of a run: what its store says about steps, checkpoints and prompts, and whether that adds up."""

from __future__ import annotations

from collections import Counter
from typing import Any

from next_ray.progress import Progress
from next_ray.store.checkpoints import CheckpointStore
from next_ray.types import CheckpointKind


class Witness:
    """Remembers every checkpoint that it ever saw committed."""

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store
        self.seen: dict[str, Any] = {}

    def look(self) -> None:
        """See what is committed now."""
        for manifest in self._store.manifests():
            self.seen.setdefault(manifest.id, manifest.objects)


def problems(store: CheckpointStore, steps: int, interval: int, num_prompts: int, seen: dict[str, Any]) -> list[str]:
    """What is wrong with a run of so many steps that has ended, in sentences; nothing when all is well.

    Every step once; every planned checkpoint there, whole, and with the objects it was committed with; every prompt trained
    exactly once an epoch, in the order of the data stream, but for those that the last checkpoint says come next.
    """
    found: list[str] = []
    manifests = {manifest.id: manifest for manifest in store.manifests()}
    for name, objects in seen.items():
        if name not in manifests:
            found.append(f"checkpoint {name} was committed and is gone")
        elif manifests[name].objects != objects:
            found.append(f"checkpoint {name} names other objects than when it was committed")
    for manifest in manifests.values():
        try:
            list(store.load_state(manifest).parts)
        except Exception as error:
            found.append(f"checkpoint {manifest.id}: {error}")
    trained = {m.step for m in manifests.values() if m.kind in (CheckpointKind.TRAINED, CheckpointKind.REVERTED)}
    jumps = sorted({0} | {m.step for m in manifests.values() if m.kind in (CheckpointKind.JUMPED, CheckpointKind.REVERTED)})
    planned = {steps}
    for start, end in zip(jumps, [*jumps[1:], steps], strict=True):
        planned |= set(range(start + interval, end + 1, interval))
    if missing := planned - trained:
        found.append(f"no checkpoint of steps {sorted(missing)}")
    logged = Counter(row["step"] for row in store.read_table("metrics", steps) if row["kind"] == "step")
    if wrong := [step for step in range(1, steps + 1) if logged[step] != 1]:
        found.append(f"steps {wrong[:10]} are not logged once each")
    return found + unbalanced(store, steps, num_prompts)


def unbalanced(store: CheckpointStore, steps: int, num_prompts: int) -> list[str]:
    """Prompts that were trained twice, or never."""
    latest = store.latest()
    assert latest is not None
    used = store.read_table("prompts", steps)
    places = Counter(row["place"] for row in used)
    cursor = Progress(**latest.metadata).cursor
    next_place = cursor["epoch"] * num_prompts + cursor["offset"]
    beyond = {next_place + place for place in cursor.get("beyond", ())}
    expected = set(range(next_place)) | beyond
    found = [f"the prompt at place {place} was trained {count} times" for place, count in places.items() if count > 1]
    if lost := expected - set(places):
        found.append(f"places {sorted(lost)[:10]} of the data stream were never trained, and will not come again")
    if extra := set(places) - expected:
        found.append(f"places {sorted(extra)[:10]} were trained, and will come again")
    by_epoch = Counter((row["place"] // num_prompts, row["prompt_id"]) for row in used)
    found += [f"{name} was trained {count} times in epoch {epoch}" for (epoch, name), count in by_epoch.items() if count > 1]
    return found
