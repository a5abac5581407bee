"""The archive actor's own part, on a real store without Ray."""

from __future__ import annotations

from pathlib import Path

from next_ray.actors.archive import ArchiveActor
from next_ray.learn.kept_batch import TABLE
from next_ray.store.checkpoints import CheckpointStore
from next_ray.types import TrainedBatch
from tests.learn.harness import make_groups, shard_of


def test_a_record_is_amended_as_often_as_it_is_asked(tmp_path: Path) -> None:
    store = CheckpointStore(f"file://{tmp_path}", "run")
    actor = ArchiveActor(store, "base", None, None)
    actor.record("attempts/00000006", {"step": 6, "decision": {"accepted": "next@1"}})
    for _ in range(2):
        actor.amend("attempts/00000006", {"rolled_back": 9})
    assert store.get_json("attempts/00000006") == {"step": 6, "decision": {"accepted": "next@1"}, "rolled_back": 9}
    actor.amend("attempts/00000012", {"rolled_back": 15})
    assert store.get_json("attempts/00000012") == {"rolled_back": 15}


def test_a_batch_is_kept_where_the_answer_says_and_once(tmp_path: Path) -> None:
    store = CheckpointStore(f"file://{tmp_path}", "run")
    groups = make_groups(num_prompts=2)
    batch = TrainedBatch((shard_of(groups),), ((1.0,) * 4,) * 2, ((0.5,) * 4,) * 2)
    actor = ArchiveActor(store, "base", None, None)
    for _ in range(2):
        url = actor.keep_batch(7, batch, groups)
    (file,) = Path(url.removeprefix("file://")).iterdir()
    assert file.suffix == ".parquet"
    rows = store.read_table(TABLE, 7)
    assert len(rows) == 8 and {row["step"] for row in rows} == {7}
