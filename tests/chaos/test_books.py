"""The books of a run balance when all is well, and each kind of damage is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from next_ray.progress import Progress
from next_ray.store.checkpoints import CheckpointStore
from next_ray.types import CheckpointKind, LearnerState
from tests.chaos.books import Witness, problems
from tests.chaos.faults import kinds
from tests.fakes import make_adapter

PROMPTS = 5


def made(tmp_path: Path, places: dict[int, list[int]] | None = None, skip: int | None = None) -> CheckpointStore:
    """A run of four steps of three prompts each, with a checkpoint every two."""
    store = CheckpointStore(f"file://{tmp_path}", "run")
    places = places or {step: list(range(3 * step - 3, 3 * step)) for step in range(1, 5)}
    for start in (1, 3):
        steps = (start, start + 1)
        rows = [{"kind": "step", "step": step} for step in steps]
        store.write_table("metrics", start, start + 1, rows)
        used = [{"step": s, "place": p, "prompt_id": f"p{p % PROMPTS}"} for s in steps for p in places[s]]
        store.write_table("prompts", start, start + 1, used)
        if start + 1 != skip:
            epoch, offset = divmod(3 * (start + 1), PROMPTS)
            progress = Progress(step=start + 1, cursor={"epoch": epoch, "offset": offset}).to_json()
            store.commit(start + 1, CheckpointKind.TRAINED, LearnerState(make_adapter(start), {}, {}), (), "f" * 64, progress)
    return store


def found(store: CheckpointStore, seen: dict[str, object] | None = None) -> list[str]:
    return problems(store, steps=4, interval=2, num_prompts=PROMPTS, seen=seen or {})


def test_a_run_without_faults_balances(tmp_path: Path) -> None:
    store = made(tmp_path)
    witness = Witness(store)
    witness.look()
    assert len(witness.seen) == 2
    assert found(store, witness.seen) == []


@pytest.mark.parametrize(
    ("places", "said"),
    [
        ({1: [0, 1, 2], 2: [3, 4, 4], 3: [6, 7, 8], 4: [9, 10, 11]}, ["place 4 was trained 2 times", "p4 was trained 2 times", "[5]"]),
        ({1: [0, 1, 2], 2: [3, 4, 5], 3: [6, 7, 8], 4: [9, 10, 12]}, ["[11] of the data stream were never trained", "[12]"]),
    ],
)
def test_prompts_that_are_lost_or_trained_twice_are_found(places: dict[int, list[int]], said: list[str], tmp_path: Path) -> None:
    text = "; ".join(found(made(tmp_path, places)))
    assert all(words in text for words in said), text


def test_a_checkpoint_that_is_missing_lost_or_damaged_is_found(tmp_path: Path) -> None:
    assert "no checkpoint of steps [2]" in "; ".join(found(made(tmp_path / "missing", skip=2)))
    store = made(tmp_path / "lost")
    witness = Witness(store)
    witness.look()
    next((tmp_path / "lost" / "run" / "manifests").glob("00000002*")).unlink()
    assert "checkpoint 00000002-trained was committed and is gone" in "; ".join(found(store, witness.seen))
    damaged = made(tmp_path / "damaged")
    for path in (tmp_path / "damaged" / "run" / "objects").glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    assert "checkpoint 00000002-trained: " in "; ".join(found(damaged))


def test_every_kind_of_fault_has_a_name_of_its_own() -> None:
    assert len(set(kinds(has_proxy=True))) == len(kinds(has_proxy=True)) == 17
    assert not any("store" in kind for kind in kinds(has_proxy=False))
