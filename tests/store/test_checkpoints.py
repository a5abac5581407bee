from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from next_ray.errors import StoreError
from next_ray.store import CheckpointStore
from next_ray.types import CheckpointKind, LearnerState, LoraFactors
from tests.store.samples import FINGERPRINT, MODULES, assert_same_state, commit, make_state


def test_a_committed_state_comes_back_exactly(store: CheckpointStore) -> None:
    state = make_state(3, scale=0.25, rank=5)
    manifest = store.commit(12, CheckpointKind.TRAINED, state, ["00000009-trained"], FINGERPRINT, {"cursor": {"epoch": 1}, "none": None})
    assert (manifest.id, manifest.run, manifest.step, manifest.kind) == ("00000012-trained", "run-1", 12, CheckpointKind.TRAINED)
    assert (manifest.rank, manifest.scale, manifest.parents) == (5, 0.25, ("00000009-trained",))
    assert manifest.metadata == {"cursor": {"epoch": 1}, "none": None}
    reader = CheckpointStore(store.storage.with_budget(20), "run-1")
    assert reader.latest() == manifest and reader.manifests() == [manifest] and reader.manifest(manifest.id) == manifest
    assert_same_state(reader.load_state(manifest), state)
    assert reader.load_adapter(manifest).keys() == state.adapter.keys()
    reader.verify(manifest)


def test_an_adapter_alone_can_be_committed(store: CheckpointStore) -> None:
    alone = LearnerState(adapter=make_state().adapter, moments={}, scalars={})
    manifest = store.commit(4, CheckpointKind.PREDICTED, alone, [], FINGERPRINT, {})
    assert set(manifest.objects) == {"adapter"}
    assert_same_state(store.load_state(manifest), alone)


def test_mixed_scales_are_folded_without_changing_a_delta(store: CheckpointStore) -> None:
    rng = np.random.default_rng(0)
    adapter = {}
    for name, rank, scale in zip(MODULES, (2, 3), (0.5, 4.0), strict=True):
        a, b = rng.standard_normal((rank, 8)), rng.standard_normal((6, rank))
        adapter[name] = LoraFactors(a=a.astype(np.float32), b=b.astype(np.float32), scale=scale)
    manifest = store.commit(1, CheckpointKind.MERGED, LearnerState(adapter, {}, {}), [], FINGERPRINT, {})
    assert (manifest.rank, manifest.scale) == (3, 1.0)
    for name, factors in store.load_adapter(manifest).items():
        expected = adapter[name].scale * adapter[name].b.astype(np.float64) @ adapter[name].a
        np.testing.assert_allclose(factors.scale * factors.b.astype(np.float64) @ factors.a, expected, rtol=1e-6, atol=1e-6)


def test_repeating_a_commit_returns_the_first(store: CheckpointStore) -> None:
    first = commit(store, 3, seed=1)
    assert commit(store, 3, seed=1) == first
    assert commit(store, 3, seed=2) == first
    assert_same_state(store.load_state(first), make_state(1))
    assert store.sweep(0) == 0, "the repetition uploaded nothing"


def test_order_and_the_checkpoint_to_resume_from(store: CheckpointStore) -> None:
    assert store.latest() is None and store.manifests() == []
    for step, kind in [
        (9, "reverted"),
        (10, "jumped"),
        (2, "trained"),
        (10, "trained"),
        (10, "predicted"),
        (9, "trained"),
        (11, "predicted"),
        (11, "merged"),
    ]:
        commit(store, step, kind=CheckpointKind(kind))
    assert [(m.step, str(m.kind)) for m in store.manifests()] == [
        (2, "trained"),
        (9, "trained"),
        (9, "reverted"),
        (10, "predicted"),
        (10, "trained"),
        (10, "jumped"),
        (11, "predicted"),
        (11, "merged"),
    ]
    latest = store.latest()
    assert latest is not None and latest.id == "00000010-jumped"
    second = store.latest(skip={"00000010-jumped"})
    assert second is not None and second.id == "00000010-trained"
    third = store.latest(skip={"00000010-jumped", "00000010-trained"})
    assert third is not None and third.id == "00000009-reverted"


def test_unknown_checkpoints_are_answered_with_those_there_are(file_storage: Any) -> None:
    store = CheckpointStore(file_storage, "run-1")
    commit(store, 1)
    with pytest.raises(StoreError, match="has no checkpoint '00000002-trained'; it holds 00000001-trained"):
        store.manifest("00000002-trained")


def test_runs_do_not_see_each_other(store: CheckpointStore) -> None:
    other = CheckpointStore(store.storage, "run-10")
    commit(store, 1)
    assert other.latest() is None
    commit(other, 2)
    assert [m.step for m in store.manifests()] == [1] and [m.step for m in other.manifests()] == [2]


@pytest.mark.parametrize("run", ["", "../x", "a/b", ".x", "a" * 101, "a b"])
def test_run_names_are_checked(file_storage: Any, run: str) -> None:
    with pytest.raises(StoreError, match=r"run\.name"):
        CheckpointStore(file_storage, run)


def _with_nan(state: LearnerState) -> LearnerState:
    state.adapter[MODULES[0]].a[0, 0] = np.nan
    return state


def _with_bad_moment(state: LearnerState) -> LearnerState:
    return LearnerState(state.adapter, {f"{MODULES[0]}.lora_A.exp_avg": np.zeros((1, 1), np.float32)}, {})


@pytest.mark.parametrize(
    "spoil, metadata, message",
    [
        (_with_nan, {}, "not a finite matrix"),
        (_with_bad_moment, {}, "shape"),
        (lambda s: LearnerState({}, {}, {}), {}, "at least one module"),
        (lambda s: LearnerState(s.adapter, {"x": np.zeros((1, 1))}, {}), {}, "belongs to no factor"),
        (lambda s: LearnerState(s.adapter, {}, {"x": float("inf")}), {}, "JSON"),
        (lambda s: s, {"x": float("nan")}, "JSON"),
        (lambda s: s, {"x": "y" * 5_000_000}, "metadata small"),
    ],
)
def test_what_could_not_be_read_back_is_not_stored(
    file_storage: Any, spoil: Callable[[LearnerState], LearnerState], metadata: dict[str, Any], message: str
) -> None:
    store = CheckpointStore(file_storage, "run-1")
    with pytest.raises(ValueError, match=message):
        store.commit(1, CheckpointKind.TRAINED, spoil(make_state()), [], FINGERPRINT, metadata)
    assert file_storage.list("run-1") == []


def test_retention_keeps_the_newest_the_protected_and_what_they_share(store: CheckpointStore) -> None:
    first = commit(store, 1)
    for step in (2, 4, 5):
        commit(store, step)
    commit(store, 2, seed=102, kind=CheckpointKind.JUMPED)
    shared = commit(store, 6, seed=1)
    assert shared.objects["adapter"] == first.objects["adapter"], "equal content is one object"
    assert store.retain(keep=2, protected={"00000002-jumped"}) == ["00000001-trained", "00000002-trained", "00000004-trained"]
    assert [m.id for m in store.manifests()] == ["00000002-jumped", "00000005-trained", "00000006-trained"]
    for manifest in store.manifests():
        store.verify(manifest)
    assert_same_state(store.load_state(shared), make_state(1))
    named = {entry.path for m in store.manifests() for entry in m.objects.values()}
    assert {path.removeprefix("run-1/") for path in store.storage.list("run-1/objects")} == named
    assert store.retain(keep=2) == ["00000002-jumped"]
    assert store.retain(keep=2) == []


def test_retention_never_deletes_the_only_checkpoint(store: CheckpointStore) -> None:
    assert store.retain(keep=1) == []
    commit(store, 1)
    commit(store, 1, seed=9, kind=CheckpointKind.JUMPED)
    assert store.retain(keep=1) == []
    assert len(store.manifests()) == 2
    with pytest.raises(ValueError, match="at least one"):
        store.retain(keep=0)


def test_a_reader_overtaken_by_retention_is_told_so(file_storage: Any) -> None:
    store = CheckpointStore(file_storage, "run-1")
    old = commit(store, 1)
    commit(store, 2)
    store.retain(keep=1)
    with pytest.raises(StoreError, match=r"00000001-trained .* was deleted while it was being read"):
        store.load_state(old)


def test_identity_binds_the_run_directory(store: CheckpointStore) -> None:
    identity = {"base_fingerprint": "abc", "model": "tiny", "lora_rank": 16}
    store.claim_identity(identity)
    store.claim_identity(dict(reversed(identity.items())))
    with pytest.raises(StoreError) as caught:
        store.claim_identity({**identity, "lora_rank": 8, "alpha": 2})
    message = str(caught.value)
    assert "belongs to another model: alpha is None there and 2 here; lora_rank is 16 there and 8 here" in message
    assert "Choose another run.name" in message and "model is" not in message
    CheckpointStore(store.storage, "run-2").claim_identity({"base_fingerprint": "other"})


def test_records_are_json_by_path(store: CheckpointStore) -> None:
    assert store.get_json("gates/00000012") is None and store.list_json() == []
    store.put_json("gates/00000012", {"accepted": None, "rows": [1, 2.5]})
    store.put_json("evaluations/0.json", [])
    store.put_json("gates/00000012", {"accepted": "next@1.5"})
    assert store.get_json("gates/00000012") == {"accepted": "next@1.5"}
    assert store.get_json("gates/00000012.json") == {"accepted": "next@1.5"}
    assert store.list_json() == ["evaluations/0", "gates/00000012"] and store.list_json("gates") == ["gates/00000012"]
    assert json.loads(store.storage.get("run-1/records/gates/00000012.json")) == {"accepted": "next@1.5"}


@pytest.mark.parametrize("path", ["../run", "/x", "", "a//b", "a/../../manifests/x"])
def test_records_stay_in_their_folder(file_storage: Any, path: str) -> None:
    store = CheckpointStore(file_storage, "run-1")
    with pytest.raises(StoreError, match="no path inside"):
        store.put_json(path, {})
    with pytest.raises(ValueError):
        store.put_json("nan", float("nan"))


def test_damaged_records_are_named(file_storage: Any) -> None:
    store = CheckpointStore(file_storage, "run-1")
    file_storage.put("run-1/records/x.json", b"[" * 100_000)
    with pytest.raises(StoreError, match=r"records/x\.json is not readable JSON"):
        store.get_json("x")
    file_storage.put("run-1/run.json", b"[]")
    with pytest.raises(StoreError, match=r"run\.json does not say"):
        store.claim_identity({"a": 1})


def test_it_is_pickled_into_actors_and_used_from_their_event_loop(store: CheckpointStore) -> None:
    commit(store, 1)
    copied: CheckpointStore = pickle.loads(pickle.dumps(store))

    async def actor() -> list[str]:
        commit(copied, 2)
        loaded = await asyncio.gather(*(asyncio.to_thread(copied.load_state, m) for m in copied.manifests()))
        return [str(state.scalars["optimizer_steps"]) for state in loaded]

    assert asyncio.run(actor()) == ["8", "9"]
    copied.close()
