"""Real Ray actors that are killed: what was asked of them is answered all the same."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from next_ray.actors.archive import ArchiveRemote, RayArchive
from next_ray.actors.deltas import DeltaRemote
from next_ray.actors.predictor import PredictorRemote
from next_ray.actors.seats import Seat, asked, backoff_s
from next_ray.actors.trajectory import RayTrajectory
from next_ray.actors.verifiers import RayRewards, VerifierRemote
from next_ray.config import ExtrapolationSection, RecoverySection, RewardSection
from next_ray.errors import ActorLostError
from next_ray.store.checkpoints import CheckpointStore
from next_ray.types import (
    Adapter,
    CheckpointKind,
    Fault,
    FaultEvent,
    LearnerState,
    LoraFactors,
    NewCheckpoint,
    Proposal,
    Ref,
    Shard,
)
from tests.fakes import FakeRollout, make_prompts

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        if "RAY_AUTH_MODE" not in os.environ:  # else Ray may have read it already: it does so when it is imported
            patch.setenv("RAY_AUTH_MODE", "disabled")
        ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


def seat(what: str, remote: Any, *arguments: Any, faults: list[Fault]) -> Seat:
    async def start() -> Any:
        return remote.options(num_cpus=0).remote(*arguments)

    return Seat(what, start, RecoverySection(actor_restarts=3, backoff_s=0.01), faults.append)


def adapter(index: int) -> dict[str, LoraFactors]:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 6)), rng.normal(size=(5, 2)) * index
    return {name: LoraFactors(a.astype(np.float32), b.astype(np.float32), 0.5) for name in ("m", "n")}


async def stored(archive: RayArchive, index: int) -> str:
    state = LearnerState(adapter(index), {}, {"step": float(index)})
    return await archive.commit(NewCheckpoint(index, CheckpointKind.TRAINED, Ref(ray.put(state)), (), {}, ()))


async def proposed(store: CheckpointStore, kill_after: Mapping[int, str], faults: list[Fault], lost_at_read: int = 0) -> Proposal:
    """The proposal after six checkpoints; after some of them an actor is killed. The predictor is lost at a read of what is mended."""
    config = ExtrapolationSection.model_validate(
        {"horizon": 1, "checkpoints": 4, "delta_workers": 2, "predictor": {"fit_steps": 20, "refine_steps": 5}}
    )
    archive = RayArchive(seat("the archive", ArchiveRemote, store, "f" * 64, None, None, faults=faults))
    workers = [seat(f"delta worker {i}", DeltaRemote, 1, [name], None, faults=faults) for i, name in enumerate(("m", "n"))]
    predictor = seat("the predictor", PredictorRemote, config, 0, faults=faults)
    trajectory = RayTrajectory(workers, predictor, config, archive)
    await trajectory.ready()
    named = {"delta": workers[1], "predictor": predictor, "archive": archive.seat}
    reads = count(1)

    async def read(checkpoint_id: str) -> Ref[Adapter]:
        found = await RayArchive.adapter(archive, checkpoint_id)
        if next(reads) == lost_at_read:
            predictor.lost(predictor.actor, "while it was shown everything again")
        return found

    archive.adapter = read
    for index in range(1, 7):
        trajectory.observe(index, index, Ref(ray.put(adapter(index))), None, await stored(archive, index))
        if index in kill_after:
            victim = named[kill_after[index]]
            ray.kill(victim.actor)
    if lost_at_read:
        trajectory.close()  # so that it is the proposal that mends, and meets what goes wrong meanwhile
    found = await trajectory.propose(6)
    assert set(await trajectory.background_s()) == {"delta", "fit"}
    trajectory.close()
    for one in (*trajectory.seats, archive.seat):
        await one.close()
    return found


def values(proposal: Proposal) -> dict[str, Adapter]:
    return {candidate.name: ray.get(candidate.adapter.value) for candidate in proposal.candidates}


def are_equal(whole: dict[str, Adapter], hurt: dict[str, Adapter]) -> None:
    assert whole.keys() == hurt.keys()
    for name, expected in whole.items():
        for module, factors in expected.items():
            found = hurt[name][module]
            np.testing.assert_array_equal(found.scale * found.b @ found.a, factors.scale * factors.b @ factors.a)


def test_a_trajectory_whose_actors_die_proposes_the_same(tmp_path: Path) -> None:
    faults: list[Fault] = []
    whole = values(asyncio.run(proposed(CheckpointStore(f"file://{tmp_path}", "whole"), {}, faults)))
    assert whole and not faults
    hurt = values(asyncio.run(proposed(CheckpointStore(f"file://{tmp_path}", "hurt"), {2: "delta", 4: "predictor", 6: "archive"}, faults)))
    assert {f.what for f in faults if f.event is FaultEvent.LOST} == {"delta worker 1", "the predictor", "the archive"}
    are_equal(whole, hurt)


@pytest.mark.parametrize("read", [1, 3])
def test_a_predictor_that_dies_while_everything_is_shown_again_proposes_the_same(tmp_path: Path, read: int) -> None:
    faults: list[Fault] = []
    whole = values(asyncio.run(proposed(CheckpointStore(f"file://{tmp_path}", "whole"), {}, faults)))
    hurt = values(asyncio.run(proposed(CheckpointStore(f"file://{tmp_path}", "hurt"), {6: "delta"}, faults, lost_at_read=read)))
    assert [f.what for f in faults if f.event is FaultEvent.LOST] == ["delta worker 1", "the predictor"]
    are_equal(whole, hurt)


def test_a_verifier_that_dies_is_followed_by_another() -> None:
    async def go() -> None:
        faults: list[Fault] = []
        judge = seat("verifier 0", VerifierRemote, RewardSection(workers=1), ["exact"], faults=faults)
        rewards = RayRewards([judge])
        shards = await FakeRollout(base_skill=0.5).generate(
            [Request(prompt, i) for i, prompt in enumerate(make_prompts(4))],  # pyright: ignore[reportArgumentType]
            None,  # pyright: ignore[reportArgumentType]
        )
        shards = [Shard(Ref(ray.put(shard.groups.value)), shard.sizes) for shard in shards]
        before = await rewards.score(shards)
        ray.kill(judge.actor)
        assert (await rewards.score(shards)).rewards == before.rewards
        assert [fault.event for fault in faults] == [FaultEvent.LOST, FaultEvent.BACK]
        await judge.close()

    asyncio.run(go())


class Request:
    """What `FakeRollout` reads of a request."""

    def __init__(self, prompt: Any, seed: int) -> None:
        self.prompt, self.seed, self.version, self.num_samples = prompt, seed, 0, 4


class Mortal:
    """Dies when it is told to."""

    def live(self) -> int:
        return os.getpid()

    def die(self) -> None:
        os.kill(os.getpid(), 9)


def test_what_kills_every_actor_that_is_asked_is_an_error_in_the_end() -> None:
    async def go() -> None:
        faults: list[Fault] = []
        mortal = seat("somebody", ray.remote(Mortal), faults=faults)
        _, first = await asked(mortal, lambda actor: [actor.live.remote()])
        ray.kill(mortal.actor)
        _, second = await asked(mortal, lambda actor: [actor.live.remote()])
        assert second != first
        assert [fault.event for fault in faults] == [FaultEvent.LOST, FaultEvent.BACK]
        with pytest.raises(ActorLostError, match=r"somebody failed 4 times in a row \(recovery.actor_restarts=3\).*died unexpectedly"):
            await asked(mortal, lambda actor: [actor.die.remote()])
        await mortal.close()

    asyncio.run(go())


def test_waits_grow_up_to_a_minute() -> None:
    assert [backoff_s(failures, 1.0) for failures in (1, 2, 3, 4, 20)] == [0, 1, 2, 4, 60]
