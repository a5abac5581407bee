"""Checkpoints of models that are trained whole: parts written and read one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from next_ray.errors import CorruptCheckpointError, StoreError
from next_ray.store import CheckpointStore, Storage
from next_ray.types import CheckpointKind, FullPart, LearnerState, Manifest
from tests.store.samples import FINGERPRINT, Crash, CrashingStorage, CrashPlan


def make_parts(seed: int = 0) -> list[FullPart]:
    rng = np.random.default_rng(seed)
    shapes = [{"model.embed_tokens.weight": (5, 3), "model.norm.weight": (3,)}, {"model.layers.0.conv.weight": (2, 3, 4)}]
    parts = []
    for names in shapes:
        weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in names.items()}
        moments = {f"{name}.{key}": np.abs(values) for name, values in weights.items() for key in ("exp_avg", "exp_avg_sq")}
        parts.append(FullPart(weights, moments))
    return parts


def commit(store: CheckpointStore, step: int, parts: Iterator[FullPart] | list[FullPart] | None = None) -> Manifest:
    state = LearnerState({}, {}, {"adam_step": float(step)}, make_parts(step) if parts is None else parts)
    return store.commit(step, CheckpointKind.TRAINED, state, [], FINGERPRINT, {"step": step})


def assert_same_parts(got: list[FullPart], expected: list[FullPart]) -> None:
    for one, other in zip(got, expected, strict=True):
        for mine, theirs in ((one.weights, other.weights), (one.moments, other.moments)):
            assert mine.keys() == theirs.keys()
            for name in theirs:
                np.testing.assert_array_equal(mine[name], theirs[name])


def test_full_weights_come_back_exactly(store: CheckpointStore) -> None:
    manifest = commit(store, 3)
    assert manifest.rank == 0
    assert sorted(manifest.objects) == ["moments_00000", "moments_00001", "scalars", "weights_00000", "weights_00001"]
    reader = CheckpointStore(store.storage.with_budget(20), "run-1")
    assert reader.latest() == manifest
    state = reader.load_state(manifest)
    assert (dict(state.adapter), dict(state.moments), dict(state.scalars)) == ({}, {}, {"adam_step": 3.0})
    assert_same_parts(list(state.parts), make_parts(3))
    weights = {name: values for part in reader.load_weights(manifest) for name, values in part.items()}
    assert sorted(weights) == ["model.embed_tokens.weight", "model.layers.0.conv.weight", "model.norm.weight"]
    reader.verify(manifest)


def test_a_part_is_written_before_the_next_is_made(tmp_path: Path) -> None:
    store = CheckpointStore(f"file://{tmp_path}", "run-1")
    written = []

    def parts() -> Iterator[FullPart]:
        for part in make_parts():
            yield part
            written.append(len(list((tmp_path / "run-1" / "objects").glob("*.safetensors"))))

    commit(store, 1, parts())
    assert written == [2, 4]


def test_weights_alone_can_be_committed(store: CheckpointStore) -> None:
    manifest = commit(store, 1, [FullPart(part.weights, {}) for part in make_parts()])
    assert_same_parts(list(store.load_state(manifest).parts), [FullPart(part.weights, {}) for part in make_parts()])


def test_an_adapter_is_not_to_be_had_and_the_message_says_why(store: CheckpointStore) -> None:
    with pytest.raises(StoreError, match="full weights and no adapter"):
        store.load_adapter(commit(store, 1))


@pytest.mark.parametrize(
    "part",
    [
        FullPart({}, {}),
        FullPart({"w": np.array([1.0, np.nan], np.float32)}, {}),
        FullPart({"w": np.ones((2, 2), np.float64)}, {}),
        FullPart({"w": np.ones((1,) * 6, np.float32)}, {}),
        FullPart({"w": np.ones(2, np.float32)}, {"w.exp_avg": np.ones(3, np.float32)}),
        FullPart({"w": np.ones(2, np.float32)}, {"v.exp_avg": np.ones(2, np.float32)}),
        FullPart({"w": np.ones(2, np.float32)}, {"w.other": np.ones(2, np.float32)}),
    ],
)
def test_what_would_not_come_back_is_refused(tmp_path: Path, part: FullPart) -> None:
    store = CheckpointStore(f"file://{tmp_path}", "run-1")
    with pytest.raises(ValueError):
        commit(store, 1, [part])
    assert store.latest() is None


@pytest.mark.parametrize(
    "weights",
    [
        {"w": np.ones(2, np.float16)},
        {"w": np.array([np.inf], np.float32)},
        {"w": np.zeros((), np.float32)},
        {},
    ],
)
def test_foreign_weights_are_refused_when_read(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    from dataclasses import replace

    from next_ray.store.checkpoints import _entry

    store = CheckpointStore(f"file://{tmp_path}", "run-1")
    manifest = commit(store, 1)
    data = save(weights)
    entry = _entry("safetensors", data)
    store.storage.put(f"run-1/{entry.path}", data)
    forged = replace(manifest, objects={**manifest.objects, "weights_00000": entry})
    with pytest.raises(CorruptCheckpointError, match="weights_00000"):
        list(store.load_state(forged).parts)


def test_a_crash_at_any_operation_leaves_the_old_checkpoint_or_the_new_one(storage: Storage) -> None:
    commit(CheckpointStore(storage, "run-1"), 1)
    plan = CrashPlan()
    commit(CheckpointStore(CrashingStorage(storage, plan), "run-1"), 2)
    assert plan.seen == 6
    for at in range(plan.seen):
        for after in (False, True):
            run = f"crash-{at}-{after}"
            commit(CheckpointStore(storage, run), 1)
            with pytest.raises(Crash):
                commit(CheckpointStore(CrashingStorage(storage, CrashPlan(at, after)), run), 2)
            survivor = CheckpointStore(storage, run)
            latest = survivor.latest()
            assert latest is not None and latest.step == (2 if at == 5 and after else 1)
            assert_same_parts(list(survivor.load_state(latest).parts), make_parts(latest.step))
            assert_same_parts(list(survivor.load_state(commit(survivor, 2)).parts), make_parts(2))
            survivor.sweep(0)
            survivor.verify(survivor.manifest("00000002-trained"))
