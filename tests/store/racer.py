"""A driver in a process of its own, for races: `python -m tests.store.racer VERB URL ENDPOINT RUN NUMBER NUMBER`.

Says when it is ready, waits for a line (except `hold`), prints what came of it as one JSON line, and stays.
"""

from __future__ import annotations

import json
import sys
import time

from next_ray.errors import LeaseError
from next_ray.store import CheckpointStore, Lease, Storage
from next_ray.store.faults import ConflictError
from next_ray.types import CheckpointKind
from tests.store.samples import FINGERPRINT, make_state


def main(verb: str, url: str, endpoint: str, run: str, first: str, second: str) -> None:
    storage = Storage(url, endpoint or None)
    storage.exists(f"{run}/warm-up")
    print("ready", flush=True)
    if verb != "hold":
        sys.stdin.readline()
    print(json.dumps(globals()[f"_{verb}"](storage, run, float(first), float(second))), flush=True)
    sys.stdin.readline()


def _acquire(storage: Storage, run: str, lease_s: float, _: float) -> dict[str, object]:
    """Try once; the winner holds on."""
    try:
        Lease(storage, run, lease_s).acquire()
    except LeaseError as error:
        return {"won": False, "message": str(error)}
    return {"won": True}


def _hold(storage: Storage, run: str, lease_s: float, hold_s: float) -> dict[str, object]:
    """Take the lease, say so, and sleep until killed."""
    lease = Lease(storage, run, lease_s)
    lease.acquire()
    print(json.dumps({"token": lease.token}), flush=True)
    time.sleep(hold_s)
    return {}


def _increment(storage: Storage, run: str, _: float, rounds: float) -> dict[str, object]:
    """Add 1 to a counter by conditional replacement, `rounds` times."""
    path = f"{run}/counter"
    done = 0
    while done < rounds:
        found = storage.read_versioned(path)
        count = json.loads(found.data)["count"]
        try:
            storage.replace_if(
                path, json.dumps({"count": count + 1, "by": id(storage), "round": done, "at": time.time_ns()}).encode(), found.etag
            )
        except ConflictError:
            continue
        done += 1
    return {"added": done}


def _commit(storage: Storage, run: str, seed: float, _: float) -> dict[str, object]:
    """Commit step 1 with a state of one's own."""
    manifest = CheckpointStore(storage, run).commit(1, CheckpointKind.TRAINED, make_state(int(seed)), [], FINGERPRINT, {"seed": seed})
    return {"seed": manifest.metadata["seed"]}


def _commit_forever(storage: Storage, run: str, first: float, _: float) -> dict[str, object]:
    """Commit step after step until killed."""
    store = CheckpointStore(storage, run)
    step = int(first)
    while True:
        store.commit(step, CheckpointKind.TRAINED, make_state(step, rank=512), [], FINGERPRINT, {"step": step})
        print(step, flush=True)
        step += 1


def _collect_forever(storage: Storage, run: str, *_: float) -> dict[str, object]:
    """Delete whatever may be deleted, until killed."""
    store = CheckpointStore(storage, run)
    while True:
        store.retain(2)
        store.sweep(10)


if __name__ == "__main__":
    main(*sys.argv[1:])
