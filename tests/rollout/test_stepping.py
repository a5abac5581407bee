"""Batches and adapters that meet on one real vLLM engine, step by step, judged by transformers and PEFT."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from next_ray.errors import ConfigError, StaleCompletionError
from next_ray.rollout.engine import VllmEngine
from next_ray.rollout.probe import probe_adapter
from next_ray.rollout.stepping import Batch
from next_ray.types import Adapter, Group, Sampling
from tests.rollout.test_engine import RANK, engine_rows, flat, make_spec, requests_for, tokens
from tests.rollout.test_reload import moved, parts_of
from tests.rollout.tiny_model import SecondOpinion, linear_shapes

pytestmark = pytest.mark.vllm

SAMPLING = Sampling(temperature=0.7, top_p=1.0, max_tokens=48)


@pytest.fixture(scope="module")
def adapters(model: Path) -> dict[int, Adapter]:
    shapes = linear_shapes(model)
    return {version: probe_adapter(shapes, RANK, scale=0.5, seed=version, amplitude=0.5) for version in (1, 2, 3, 4)}


@pytest.fixture(scope="module")
def built(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmEngine]:
    with VllmEngine(make_spec(model, tmp_path_factory.mktemp("adapters"))) as engine:
        yield engine


@pytest.fixture
def engine(built: VllmEngine) -> Iterator[VllmEngine]:
    yield built
    assert not built.busy, "the test left requests behind"
    built.load({})
    assert not built._llm.llm_engine.list_loras()
    assert [path.name for path in built._scratch.path.iterdir()] == ["lock"]


@pytest.fixture
def restarting(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> VllmEngine:
    rollout = engine._spec.rollout.model_copy(update={"in_flight": "restart"})
    monkeypatch.setattr(engine, "_spec", dataclasses.replace(engine._spec, rollout=rollout))
    return engine


def steps(engine: VllmEngine, count: int) -> list[Batch]:
    return [batch for _ in range(count) for batch in engine.step()]


def finish(engine: VllmEngine, *batches: Batch) -> list[list[Group]]:
    while not all(batch.done for batch in batches):
        engine.step()
    return [engine.groups(batch) for batch in batches]


def same_policy(model: Path, tmp_path: Path, groups: Sequence[Group], adapter: Adapter | None) -> bool:
    opinion = SecondOpinion(model, tmp_path)
    judged = [opinion.logprobs(adapter, g.prompt_token_ids, c, SAMPLING.temperature) for g in groups for c in g.completions]
    return bool(np.abs(flat(engine_rows(list(groups))) - flat(judged)).mean() < 0.03)


def test_requests_in_flight_are_finished_under_their_own_adapter(
    engine: VllmEngine, adapters: dict[int, Adapter], model: Path, tmp_path: Path
) -> None:
    engine.load({1: adapters[1]}, in_force=1)
    old = engine.begin(requests_for([1, 0]), SAMPLING)
    steps(engine, 5)
    engine.load({2: adapters[2]}, in_force=2)
    assert not old.done and engine.info().versions == (2,)
    with pytest.raises(StaleCompletionError, match=r"versions \[1\]"):
        engine.begin(requests_for([1]), SAMPLING)
    new = engine.begin(requests_for([2]), SAMPLING)
    steps(engine, 1)
    assert len(engine._llm.llm_engine.list_loras()) == 2, "the old adapter has its slot while it is needed"
    of_old, of_new = finish(engine, old, new)
    assert len(engine._llm.llm_engine.list_loras()) == 1, "and no longer"
    assert [c.version for g in (*of_old, *of_new) for c in g.completions] == [1] * 4 + [0] * 4 + [2] * 4
    assert max(len(c.token_ids) for c in of_old[0].completions) > 6, "nothing was in flight at the hand-over"
    for groups, adapter in ((of_old[:1], adapters[1]), (of_old[1:], None), (of_new, adapters[2])):
        assert same_policy(model, tmp_path, groups, adapter)
    assert not same_policy(model, tmp_path, of_old[:1], adapters[2])


def test_a_batch_is_what_it_would_be_alone(engine: VllmEngine, adapters: dict[int, Adapter]) -> None:
    engine.load({1: adapters[1], 2: adapters[2]})
    alone = [tokens(group) for group in engine.generate(requests_for([1, 2]), SAMPLING)]
    first = engine.begin(requests_for([1, 2]), SAMPLING)
    steps(engine, 3)
    second = engine.begin(requests_for([2, 1, 0], samples=3), SAMPLING)
    found, _ = finish(engine, first, second)
    assert [tokens(group) for group in found] == alone


def test_adapters_wait_for_room_and_evict_nothing(engine: VllmEngine, adapters: dict[int, Adapter]) -> None:
    """Three slots: with versions 1 and 2 in flight there is room for one more, not for two."""
    batches = []
    for version in (1, 2):
        engine.load({version: adapters[version]})
        batches.append(engine.begin(requests_for([version]), SAMPLING))
        steps(engine, 2)
    assert engine.has_room(1) and not engine.has_room(2)
    with pytest.raises(ConfigError, match=r"2 adapters beside 2 that are still in use.*built for 3"):
        engine.load({3: adapters[3], 4: adapters[4]})
    assert engine.info().versions == (2,)
    finish(engine, *batches)
    assert engine.has_room(3)
    engine.load({3: adapters[3], 4: adapters[4]})


def test_loading_a_version_again_harms_neither_old_nor_new_requests(engine: VllmEngine, adapters: dict[int, Adapter]) -> None:
    engine.load({1: adapters[1]})
    expected = [tokens(group) for group in engine.generate(requests_for([1]), SAMPLING)]
    before = engine.begin(requests_for([1]), SAMPLING)
    steps(engine, 3)
    engine.load({1: adapters[1]})
    after = engine.begin(requests_for([1]), SAMPLING)
    assert [[tokens(group) for group in groups] for groups in finish(engine, before, after)] == [expected, expected]


def test_a_dropped_batch_leaves_nothing(engine: VllmEngine, adapters: dict[int, Adapter]) -> None:
    engine.load({1: adapters[1]})
    expected = [tokens(group) for group in engine.generate(requests_for([1]), SAMPLING)]
    dropped, kept = engine.begin(requests_for([1, 0]), SAMPLING), engine.begin(requests_for([1]), SAMPLING)
    steps(engine, 3)
    engine.abort(dropped)
    engine.load({})
    assert engine.has_room(2) and not engine.has_room(3)
    assert [tokens(group) for group in finish(engine, kept)[0]] == expected
    assert not dropped.done and not engine._llm.llm_engine.has_unfinished_requests()
    last = engine.begin(requests_for([0]), SAMPLING)
    steps(engine, 1)
    engine.abort(last)
    assert not engine.busy


def test_by_config_requests_are_begun_anew_under_the_adapter_in_force(restarting: VllmEngine, adapters: dict[int, Adapter]) -> None:
    engine = restarting
    engine.load({2: adapters[2]}, in_force=2)
    expected = [tokens(group) for group in engine.generate(requests_for([2, 2]), SAMPLING)]
    engine.load({1: adapters[1]}, in_force=1)
    batch = engine.begin(requests_for([1, 0]), SAMPLING)
    steps(engine, 1)
    assert batch.outputs == [None, None]
    engine.load({2: adapters[2], 3: adapters[3]}, in_force=2)
    assert len(engine._llm.llm_engine.list_loras()) == 2, "nobody needs the old adapter any more"
    (groups,) = finish(engine, batch)
    assert [tokens(group) for group in groups] == expected, "with the seeds of the requests"
    assert {c.version for g in groups for c in g.completions} == {2}
    assert batch.restarts == 2


def test_what_is_of_the_adapter_in_force_goes_on(restarting: VllmEngine, adapters: dict[int, Adapter]) -> None:
    restarting.load({1: adapters[1]}, in_force=1)
    batch = restarting.begin(requests_for([1]), SAMPLING)
    steps(restarting, 4)
    with pytest.raises(ConfigError, match="still in use"):
        restarting.load({version: adapters[version] for version in (1, 2, 3)}, in_force=1)
    assert restarting.has_room(2, in_force=1) and not restarting.has_room(3, in_force=1) and restarting.has_room(3, in_force=2)
    restarting.load({1: adapters[1], 3: adapters[3]}, in_force=1)
    finish(restarting, batch)
    assert batch.restarts == 0
    with pytest.raises(ConfigError, match="version 7 shall be in force"):
        restarting.load({1: adapters[1]}, in_force=7)


def test_full_weights_too_find_requests_begun_anew(restarting: VllmEngine, model: Path) -> None:
    batch = restarting.begin(requests_for([0]), SAMPLING)
    steps(restarting, 1)
    restarting.reload(7, parts_of(moved(model, 1)))
    (groups,) = finish(restarting, batch)
    assert batch.restarts == 1
    assert [tokens(group) for group in groups] == [tokens(group) for group in restarting.generate(requests_for([7]), SAMPLING)]
    assert {c.version for g in groups for c in g.completions} == {7}
    with pytest.raises(StaleCompletionError, match=r"serves \[7\]"):
        restarting.begin(requests_for([0]), SAMPLING)
    restarting.reload(0)
