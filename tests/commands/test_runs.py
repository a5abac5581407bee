"""`next-ray runs`: what it says of runs in a real store, and what it changes there."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from next_ray.commands.main import main
from next_ray.config import Config
from next_ray.progress import Progress
from next_ray.settings import load_config
from next_ray.store import CheckpointStore, Lease, Storage
from next_ray.types import CheckpointKind, LearnerState
from tests.s3_server import S3Server, s3_server
from tests.store.samples import FINGERPRINT, assert_same_state, make_state

TRAINED, JUMPED = CheckpointKind.TRAINED, CheckpointKind.JUMPED
INTERVAL = {"mean": 0.5, "low": 0.45, "high": 0.55}


@pytest.fixture(autouse=True)
def own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["next-ray"])


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(f"file://{tmp_path}/store")


def begin(storage: Storage, name: str, **settings: str) -> CheckpointStore:
    store = CheckpointStore(storage, name)
    store.claim_identity({"base_fingerprint": FINGERPRINT, "model": "tiny", "lora_rank": 4})
    config = load_config(None, [f"run.name={name}", *(f"{key.replace('__', '.')}={value}" for key, value in settings.items())])
    store.put_json("config", {"version": "0.1.0", "device": "cpu", "config": config.model_dump(mode="json")})
    return store


def train(store: CheckpointStore, steps: int, progress: Progress | None = None, observed: int = 99) -> Progress:
    """Commit a checkpoint a step as the loop does, those up to `observed` members of the trajectory."""
    progress = progress or Progress()
    for step in range(progress.step + 1, steps + 1):
        progress = replace(progress, step=step, version=step, updates=step)
        rows = [{"step": step, "kind": "step", "reward_mean": 0.1 * step}]
        if step % 2 == 0:
            rows.append({"step": step, "kind": "evaluation", "avg_at_k": 0.1 * step, "avg_at_k_low": 0.0, "avg_at_k_high": 1.0})
        store.write_table("metrics", step, step, rows)
        made = store.commit(step, TRAINED, make_state(step), progress.parents(), FINGERPRINT, progress.to_json())
        members = [*progress.trajectory, made.id] if step - progress.segment_start <= observed else progress.trajectory
        progress = replace(progress, last_checkpoint=made.id, trajectory=members)
    return progress


def jump(store: CheckpointStore, progress: Progress) -> Progress:
    progress = replace(progress, tried=progress.step)
    taken = {"step": progress.step, "candidate": "two-point@1.5", "from": progress.last_checkpoint}
    progress.jumps = [*progress.jumps, taken]
    progress.begin_trajectory()
    made = store.commit(progress.step, JUMPED, make_state(100), progress.parents(), FINGERPRINT, progress.to_json())
    decision = {"accepted": "two-point@1.5", "reason": "It is better."}
    store.put_json(f"attempts/{progress.step:08d}", {"step": progress.step, "decision": decision, "rolled_back": 40, "why": "It was not."})
    progress.jumps = [{**taken, "to": made.id}]
    return replace(progress, last_checkpoint=made.id)


def finish(store: CheckpointStore, steps: int) -> None:
    models = [{"label": name, "steps": at, "avg_at_k": INTERVAL, "pass_at_k": INTERVAL} for name, at in (("base", 0), ("final", steps))]
    store.put_json("summary", {"models": models})


def say(*words: str, code: int = 0) -> int:
    try:
        assert main(["runs", *words]) == code
    except SystemExit as end:
        assert end.code == code
    return code


def read(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    say(*words, "--json")
    return json.loads(capsys.readouterr().out)


def test_list_tells_running_stopped_finished_and_damaged_apart(storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    train(begin(storage, "stopped"), 5)
    train(done := begin(storage, "done"), 3)
    finish(done, 3)
    train(longer := begin(storage, "longer"), 4)
    finish(longer, 3)  # of a run that was prolonged and not finished again
    begin(storage, "fresh")
    train(broken := begin(storage, "broken"), 1)
    Path(storage.root, "broken", "manifests", "00000001-trained.json").write_text("{}")
    Path(storage.root, "no-run").mkdir()
    lease = Lease(storage, "stopped")
    lease.acquire()
    rows = {row["run"]: row for row in read(capsys, "list", storage.url)}
    assert {name: row["state"] for name, row in rows.items()} == {
        "stopped": "running",
        "done": "finished",
        "longer": "stopped",
        "fresh": "stopped",
        "broken": "damaged",
    }
    assert "process" in rows["stopped"]["detail"]
    assert (rows["stopped"]["steps"], rows["stopped"]["last_checkpoint"]) == (5, "00000005-trained")
    assert rows["stopped"]["accuracy"] == {"mean": pytest.approx(0.4), "low": 0.0, "high": 1.0}, "of the newest evaluation"
    assert rows["done"]["accuracy"] == INTERVAL and rows["fresh"]["accuracy"] is None
    assert rows["done"]["size_bytes"] == sum(path.stat().st_size for path in Path(storage.root, "done").rglob("[!.]*") if path.is_file())
    lease.release()
    say("list", storage.root)
    text = capsys.readouterr().out
    assert "00000003-trained" in text and "50.0 % [45.0, 55.0]" in text
    assert next(line for line in text.splitlines() if line.startswith("stopped ")).rstrip().endswith("stopped")
    assert broken.url in text


def test_an_empty_store_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    say("list", str(tmp_path / "nothing"))
    assert "No runs in" in capsys.readouterr().out
    assert not (tmp_path / "nothing").exists()


def test_show_and_diff(storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    first = begin(storage, "a", learner__lr="1e-4")
    train(first, 4, jump(first, train(first, 3)))
    finish(first, 4)
    train(begin(storage, "b", learner__lr="2e-4", extrapolation__enabled="false"), 4)
    say("show", "a", "--store", storage.url)
    text = capsys.readouterr().out
    for part in ("tiny, LoRA of rank 4", "finished, 4 steps", "two-point@1.5, taken back at step 40", "00000003-jumped", "50.0 %"):
        assert part in text
    shown = read(capsys, "show", f"{storage.root}/a")
    assert [one["id"] for one in shown["checkpoints"]] == [
        *(f"0000000{n}-trained" for n in (1, 2, 3)),
        "00000003-jumped",
        "00000004-trained",
    ]
    assert Config.model_validate_json(json.dumps(shown["config"])).run.name == "a"
    found = read(capsys, "diff", "a", "b", "--store", storage.url)
    assert found["settings"] == {"learner.lr": [1e-4, 2e-4], "extrapolation.enabled": [True, False]}
    assert found["results"]["state"] == ["finished", "stopped"]
    assert found["results"]["jumps"] == ["two-point@1.5, taken back at step 40 (step 3)", "none tried"]
    say("diff", "a", "b", "--store", storage.url)
    text = capsys.readouterr().out
    assert "learner.lr" in text and "0.0002" in text and "none tried" in text


def test_a_run_that_is_not_there_is_answered_with_the_nearest(storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    begin(storage, "tiny")
    for words in (
        ["show", "tinny"],
        ["prune", "tinny", "--keep", "1"],
        ["verify", "tinny"],
        ["fork", "tinny@3", "new"],
        ["diff", "tiny", "tinny"],
    ):
        say(*words, "--store", storage.url, code=2)
        said = capsys.readouterr().err
        assert "no run 'tinny'" in said and "Did you mean tiny?" in said and "Traceback" not in said


def test_prune_keeps_what_resuming_needs(storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    store = begin(storage, "a")
    train(store, 9, jump(store, train(store, 4)), observed=2)
    before = [manifest.id for manifest in store.manifests()]
    say("prune", "a", "--keep", "2", "--dry-run", "--store", storage.url)
    foretold = capsys.readouterr().out
    assert [manifest.id for manifest in store.manifests()] == before
    with Lease(storage, "a"):
        say("prune", "a", "--keep", "2", "--store", storage.url, code=2)
        assert "is being written by process" in capsys.readouterr().err
        assert [manifest.id for manifest in store.manifests()] == before
    say("prune", "a", "--keep", "2", "--store", storage.url)
    done = capsys.readouterr().out
    assert done.split("would")[0].splitlines()[:-1] == foretold.split("would")[0].splitlines()[:-1]
    kept = [f"{step:08d}-trained" for step in (4, 5, 6, 8, 9)]
    assert [manifest.id for manifest in store.manifests()] == sorted(
        [*kept, "00000004-jumped"], key=lambda one: (one[:8], one[9:] == "jumped")
    )
    say("verify", "a", "--store", storage.url)
    assert "All 6 checkpoints" in capsys.readouterr().out
    say("prune", "a", "--keep", "2", "--store", storage.url)
    assert "All 6 checkpoints stay" in capsys.readouterr().out


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


def check_fork(storage: Storage, capsys: pytest.CaptureFixture[str], options: list[str]) -> None:
    store = begin(storage, "a")
    end = train(store, 6, jump(store, train(store, 3)))
    say("fork", "a@5", "b", "--store", storage.url, *options)
    said = capsys.readouterr().out
    assert "begins at 00000005-trained" in said and f"run.name=b store.url={storage.url}" in said
    forked = CheckpointStore(storage, "b")
    latest = forked.latest()
    assert latest is not None and latest.id == "00000005-trained"
    assert latest.metadata == store.manifest("00000005-trained").metadata and latest.metadata != end.to_json()
    assert_same_state(forked.load_state(latest), make_state(5))
    assert {m.id for m in forked.manifests()} == {"00000003-trained", "00000003-jumped", "00000004-trained", "00000005-trained"}
    assert forked.identity() == store.identity()
    assert forked.read_table("metrics") == store.read_table("metrics", 5)
    assert (forked.get_json("forked_from")["run"], forked.get_json("forked_from")["checkpoint"]) == (store.url, latest.id)
    assert forked.get_json("attempts/00000003") == {"step": 3, "decision": {"accepted": "two-point@1.5", "reason": "It is better."}}
    assert read(capsys, "show", "b", "--store", storage.url, *options)["forked_from"]["checkpoint"] == latest.id
    say("show", "b", "--config", "--store", storage.url, *options)
    job = yaml.safe_load(capsys.readouterr().out)
    assert (job["run"]["name"], job["store"]["url"], job["learner"]["lr"]) == (
        "b",
        storage.url,
        store.get_json("config")["config"]["learner"]["lr"],
    )
    say("fork", "a@5", "b", "--store", storage.url, *options, code=2)
    assert "There is a run 'b'" in capsys.readouterr().err
    with Lease(storage, "b"):  # free again
        pass


def test_fork_copies_what_a_driver_needs(storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    check_fork(storage, capsys, [])


@pytest.mark.s3
def test_all_of_it_on_s3(s3: S3Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in s3.credentials.items():
        monkeypatch.setenv(name, value)
    options = ["--endpoint-url", s3.endpoint_url]
    with Storage(f"{s3.url}/forks", s3.endpoint_url) as storage:
        check_fork(storage, capsys, options)
        assert [row["run"] for row in read(capsys, "list", storage.url, *options)] == ["a", "b"]
        say("prune", "b", "--keep", "1", "--store", storage.url, *options)
        assert len(CheckpointStore(storage, "b").manifests()) == 4, "both ends of the jump and the trajectory stay"


def test_a_fork_into_another_store_of_a_trajectory_that_is_gone_begins_a_new_one(
    storage: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = begin(storage, "a")
    train(store, 3)
    Path(storage.root, "a", "manifests", "00000001-trained.json").unlink()
    say("fork", f"{storage.root}/a", f"{tmp_path}/other/b")
    assert "00000001-trained of its trajectory is deleted by now" in capsys.readouterr().out
    latest = CheckpointStore(f"file://{tmp_path}/other", "b").latest()
    assert latest is not None
    progress = Progress(**latest.metadata)
    assert (progress.step, progress.segment_start, progress.trajectory) == (3, 3, [])


@pytest.mark.parametrize("at", range(0, 4))
def test_an_interrupted_fork_leaves_nothing(
    storage: Storage, at: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(begin(storage, "a"), 3)
    load, seen = CheckpointStore.load_state, []

    def interrupted(self: CheckpointStore, manifest: Any) -> LearnerState:
        seen.append(manifest.id)
        if len(seen) == at + 1:
            raise KeyboardInterrupt
        return load(self, manifest)

    monkeypatch.setattr(CheckpointStore, "load_state", interrupted)
    if at == 3:  # all are copied, and the log is not
        monkeypatch.setattr(CheckpointStore, "write_table", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    say("fork", "a", "b", "--store", storage.url, code=130)
    assert "what was copied is removed again" in capsys.readouterr().err
    assert [row["run"] for row in read(capsys, "list", storage.url)] == ["a"]
    assert [path for path in storage.list("b") if not path.endswith("lease.json")] == []
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", ["next-ray"])
    say("fork", "a", "b", "--store", storage.url)


def test_verify_names_what_is_damaged(storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    store = begin(storage, "a")
    train(store, 2)
    path = Path(storage.root, "a", store.manifest("00000002-trained").objects["adapter"].path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    say("verify", "a", "--store", storage.url, code=2)
    said = capsys.readouterr().err
    assert "1 of 2 checkpoints are damaged" in said and path.name in said
    say("verify", "a@1", "--store", storage.url)
