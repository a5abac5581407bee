"""The loop ahead of its learner over several engines of unequal speed: real loop, port, actors and threads; only vLLM is a fake."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayTaskError

from next_ray.actors.engines import EngineActor, RayRollout
from next_ray.actors.seats import Seat, Start
from next_ray.config import Config, LearnerSection, RecoverySection
from next_ray.data.splits import Splits
from next_ray.errors import ActorLostError, StaleCompletionError
from next_ray.loop import TrainingLoop
from next_ray.ports import Stages
from next_ray.rollout.stepping import Batch
from next_ray.rollout.worker import EngineThread
from next_ray.types import BASE_VERSION, Adapter, Fault, FaultEvent, Group, Ref, RolloutRequest, Sampling
from tests.fakes import FakeArchive, FakeLearner, FakeReport, FakeRewards, FakeRollout, FakeTrajectory, make_adapter, make_prompts, skill_of

SAMPLING = Sampling(1.0, 1.0, 8)


class FakeEngine:
    """Answers like `FakeRollout`; a batch takes `steps` steps of `step_s` seconds each."""

    def __init__(self, step_s: float, steps: int = 4, restarts: bool = False) -> None:
        self.deterministic = False
        self.model = FakeRollout()
        self.step_s, self.steps, self.restarts = step_s, steps, restarts
        self.left: dict[Batch, int] = {}
        self.most_at_once = self.aborted = self.loads_under_way = 0
        self.broken_at = float("inf")
        self.reloads: list[int] = []

    def __enter__(self) -> FakeEngine:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def busy(self) -> bool:
        return bool(self.left)

    def has_room(self, num_adapters: int, in_force: int = BASE_VERSION) -> bool:
        return True

    def load(self, adapters: Mapping[int, Adapter], in_force: int) -> None:
        self.loads_under_way += bool(self.left)
        self.served = {version: skill_of(adapter) for version, adapter in adapters.items()}
        self.model.served |= self.served
        for batch in self.left if self.restarts else ():
            batch.restarts += len(batch.requests)
            batch.requests = [RolloutRequest(r.prompt, in_force, r.seed, r.num_samples) for r in batch.requests]
            self.left[batch] = self.steps

    def begin(self, requests: Sequence[RolloutRequest], sampling: Sampling) -> Batch:
        if missing := {r.version for r in requests} - {self.model.weights[0], *getattr(self, "served", ())}:
            raise StaleCompletionError(f"{missing} are not served")
        batch = Batch(list(requests), [[1]] * len(requests), sampling)
        self.left[batch] = self.steps
        self.most_at_once = max(self.most_at_once, len(self.left))
        return batch

    def reload(self, version: int, policy: Adapter | None) -> None:
        assert self.restarts or not self.left, "the requests in flight belong to the old weights"
        self.served, self.model.served = {}, {}
        self.model.weights = (version, 0.0 if policy is None else skill_of(policy))
        self.reloads.append(version)

    def step(self) -> list[Batch]:
        time.sleep(self.step_s)
        self.broken_at -= 1
        if self.broken_at < 0:
            raise MemoryError("no room for another block")
        self.left = {batch: left - 1 for batch, left in self.left.items()}
        done = [batch for batch, left in self.left.items() if left == 0]
        self.left = {batch: left for batch, left in self.left.items() if left}
        return done

    def abort(self, batch: Batch) -> None:
        del self.left[batch]
        self.aborted += 1

    def groups(self, batch: Batch) -> list[Group]:
        return [self.model._group(request) for request in batch.requests]


class LocalActor(EngineActor):
    """An engine actor without Ray: methods are called in the loop's own thread, and `remote` begins them, as Ray does."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = EngineThread(lambda: engine)  # pyright: ignore[reportArgumentType]
        self._calls, self._aborted = {}, deque(maxlen=8)

    async def reload(self, version: int, policy: Any) -> None:
        """The weights themselves instead of references to parts."""
        await asyncio.wrap_future(self._engine.reload(version, policy))


class Remote:
    def __init__(self, method: Callable[..., Any], num_returns: int = 1) -> None:
        self._method, self._num_returns = method, num_returns

    def options(self, num_returns: int) -> Remote:
        return Remote(self._method, num_returns)

    def remote(self, *arguments: Any) -> Any:
        call = asyncio.ensure_future(self._method(*arguments))
        parts = [asyncio.get_running_loop().create_future() for _ in range(self._num_returns)]

        def settle(done: asyncio.Future[Any]) -> None:
            for i, part in enumerate(parts):
                if part.done():
                    continue
                if (error := done.exception()) is not None:
                    part.set_exception(error if isinstance(error, RayActorError) else RayTaskError("f", str(error), error))
                    part.exception()  # not every part is awaited
                else:
                    part.set_result(done.result()[i] if self._num_returns > 1 else done.result())

        call.add_done_callback(settle)
        return parts if self._num_returns > 1 else parts[0]


class Handle:
    def __init__(self, actor: LocalActor) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Remote:
        return Remote(getattr(self._actor, name))

    def end(self) -> None:
        """As `ray.kill`, but that this one waits for the step under way."""
        threading.Thread(target=self._actor._engine.close, daemon=True).start()


def seats_of(engines: Sequence[FakeEngine], spare: Sequence[FakeEngine] = (), faults: list[Fault] | None = None) -> list[Seat]:
    """A seat an engine; when one is lost, the next of the spare ones takes its place."""
    left = list(spare)

    def starter(first: FakeEngine) -> Start:
        waiting = [first]

        async def start() -> Handle:
            if not waiting and not left:
                raise ActorLostError("no engine left")
            return Handle(LocalActor(waiting.pop() if waiting else left.pop(0)))

        return start

    recovery = RecoverySection(actor_restarts=2, backoff_s=0.01)
    note = (faults if faults is not None else []).append
    return [Seat(f"engine {i}", starter(engine), recovery, note, end=Handle.end) for i, engine in enumerate(engines)]


def rollout_of(engines: Sequence[FakeEngine], spare: Sequence[FakeEngine] = (), faults: list[Fault] | None = None) -> RayRollout:
    return RayRollout(seats_of(engines, spare, faults), 1)


class Rewards(FakeRewards):
    """The groups come as futures here, as Ray's references would."""

    async def score(self, shards: Any, num_samples: int = 0) -> Any:
        for shard in shards:
            object.__setattr__(shard.groups, "value", await shard.groups.value)
        return await super().score(shards, num_samples)


class Learner(FakeLearner):
    """An update takes a while."""

    async def update(self, plan: Any) -> Any:
        await asyncio.sleep(0.02)
        return await super().update(plan)


def config(staleness: int, in_flight: str = "finish", dynamic_sampling: int = 0, **extrapolation: Any) -> Config:
    return Config.model_validate(
        {
            "run": {"name": "t", "steps": 12, "seed": 3},
            "rollout": {"prompts_per_step": 8, "samples_per_prompt": 4, "max_staleness": staleness, "in_flight": in_flight},
            "algorithm": {"dynamic_sampling": dynamic_sampling},
            "data": {"gate_prompts": 64, "test_prompts": 64},
            "extrapolation": {"interval_steps": 2, "checkpoints": 3, "horizon": 1, "gate": {"samples": 4}, **extrapolation},
        }
    )


def run(
    cfg: Config,
    engines: Sequence[FakeEngine],
    gains: dict[str, float] | None = None,
    spare: Sequence[FakeEngine] = (),
    faults: list[Fault] | None = None,
) -> FakeReport:
    report = FakeReport()

    async def go() -> None:
        rollout = rollout_of(engines, spare, faults)
        is_full = cfg.learner.mode == "full"
        stages = Stages(rollout, Rewards(), Learner(0.02, is_full=is_full), FakeArchive(), FakeTrajectory(gains or {}, beside=is_full))
        splits = Splits(train=make_prompts(21), gate=make_prompts(64, "g"), test=make_prompts(64, "t"))
        try:
            await TrainingLoop(cfg, splits, stages, report).run()
        finally:
            await asyncio.wait_for(rollout.close(), 30)

    asyncio.run(go())
    assert not [thread for thread in threading.enumerate() if thread.name == "rollout-engine"], "an engine's thread is left"
    return report


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_unequal_engines_hold_the_bound_also_after_a_jump_and_drop_what_they_had_begun(staleness: int) -> None:
    engines = [FakeEngine(0.001), FakeEngine(0.03)]
    report = run(config(staleness), engines, gains={"next@1": 0.4})
    (jump,) = report.jumps
    assert jump.decision.accepted == "next@1" and jump.step == 6
    if not staleness:
        assert [engine.most_at_once for engine in engines] == [1, 1]
        return
    found = [record.metrics["staleness"] for record in report.steps]
    assert found == [min(i, staleness) for i in range(6)] * 2, "a jump is a new beginning"
    assert report.steps[-1].metrics["dropped_prompts"] == 8.0 * staleness
    assert max(engine.most_at_once for engine in engines) <= staleness + 1, "the queue is bounded, also when the gate samples beside"
    assert engines[1].loads_under_way > 0, "adapters came while the slow engine sampled"
    if staleness > 1:
        assert engines[1].most_at_once >= 2
    assert all(not engine.left for engine in engines)


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_full_weights_reach_unequal_engines_in_order_and_after_what_is_in_flight(staleness: int) -> None:
    engines = [FakeEngine(0.001), FakeEngine(0.02)]
    whole = config(staleness, methods=["next"]).model_copy(update={"learner": LearnerSection(mode="full")})
    report = run(whole, engines, gains={"next@1": 0.4})
    (jump,) = report.jumps
    assert jump.decision.accepted == "next@1"
    assert [engine.reloads for engine in engines] == [list(range(1, 14))] * 2
    if staleness:
        assert [record.metrics["staleness"] for record in report.steps] == [min(i, staleness) for i in range(6)] * 2


def test_what_is_dropped_is_not_sampled_to_the_end() -> None:
    """One engine would take more than a minute for what is in flight when it is dropped."""
    engines = [FakeEngine(0.001), FakeEngine(0.001)]

    async def go() -> None:
        rollout = rollout_of(engines)
        stages = Stages(rollout, Rewards(), Learner(0.02), FakeArchive(), FakeTrajectory({}))
        splits = Splits(train=make_prompts(21), gate=make_prompts(64, "g"), test=make_prompts(64, "t"))
        loop = TrainingLoop(config(2), splits, stages, FakeReport())
        await loop.step()
        engines[1].steps = 60_000
        await loop.step()
        await loop.feed.discard()
        for _ in range(500):
            if not any(engine.left for engine in engines):
                break
            await asyncio.sleep(0.01)
        assert not any(engine.left for engine in engines) and engines[1].aborted >= 1
        assert loop.feed.dropped == 16
        await rollout.close()

    asyncio.run(go())


def test_requests_begun_anew_are_counted_and_are_of_the_newer_policy() -> None:
    engines = [FakeEngine(0.001, restarts=True), FakeEngine(0.012, restarts=True)]
    report = run(config(2, "restart", enabled=False), engines)
    restarted = [record.metrics["restarted_prompts"] for record in report.steps]
    assert max(restarted) >= 4
    assert all(record.metrics["staleness"] <= 2 for record in report.steps)
    finished = run(config(2, enabled=False), [FakeEngine(0.001), FakeEngine(0.012)])
    assert "restarted_prompts" not in finished.steps[0].metrics


@pytest.mark.parametrize("staleness", [0, 2])
def test_an_engine_that_fails_is_replaced_and_nothing_is_lost(staleness: int) -> None:
    engines, faults = [FakeEngine(0.001), FakeEngine(0.001)], list[Fault]()
    engines[1].broken_at = 14
    report = run(config(staleness, enabled=False), engines, spare=[FakeEngine(0.001)], faults=faults)
    assert [record.step for record in report.steps] == list(range(1, 13))
    assert [(fault.what, fault.event) for fault in faults] == [("engine 1", FaultEvent.LOST), ("engine 1", FaultEvent.BACK)]
    assert "no room for another block" in faults[0].detail
    if not staleness:  # requests carry their seeds: who samples them does not matter
        assert [r.reward_mean for r in report.steps] == [r.reward_mean for r in run(config(0, enabled=False), [FakeEngine(0.001)]).steps]


def test_a_batch_that_ends_two_engines_ends_the_run() -> None:
    engines = [FakeEngine(0.001), FakeEngine(0.001)]
    for engine in engines:
        engine.broken_at = 14
    faults: list[Fault] = []
    with pytest.raises(ActorLostError, match="no room for another block"):
        run(config(0, enabled=False), engines, spare=[broken(), broken(), broken(), broken()], faults=faults)
    assert len([fault for fault in faults if fault.event is FaultEvent.LOST]) <= 4


def test_engines_that_never_come_back_are_given_up() -> None:
    engines, faults = [FakeEngine(0.001)], list[Fault]()
    engines[0].broken_at = 14
    with pytest.raises(ActorLostError, match=r"engine 0 failed 3 times in a row \(recovery.actor_restarts=2\)"):
        run(config(0, enabled=False), engines, faults=faults)
    assert [fault.event for fault in faults] == [FaultEvent.LOST] * 3


def test_the_others_go_on_without_an_engine_that_stays_away() -> None:
    engines, faults = [FakeEngine(0.001), FakeEngine(0.001)], list[Fault]()
    engines[0].broken_at = 14
    report = run(config(0, enabled=False), engines, faults=faults)
    assert len(report.steps) == 12
    assert engines[1].most_at_once > 0


def test_an_engine_that_comes_back_serves_what_the_others_serve() -> None:
    async def go() -> None:
        spare, faults = FakeEngine(0.001), list[Fault]()
        engines = [FakeEngine(0.001)]
        rollout = rollout_of(engines, [spare], faults)
        await rollout.reload(4, Ref(make_adapter(0.2)))
        await rollout.load({7: Ref(make_adapter(0.3))}, 4)
        await rollout.generate([RolloutRequest(p, 7, 0, 2) for p in make_prompts(3)], SAMPLING)
        engines[0].broken_at = 0
        await rollout.generate([RolloutRequest(p, 7, 0, 2) for p in make_prompts(3)], SAMPLING)
        assert (spare.model.weights, spare.served) == ((4, pytest.approx(0.2)), {7: pytest.approx(0.3)})
        await rollout.close()

    asyncio.run(go())


def broken() -> FakeEngine:
    engine = FakeEngine(0.001)
    engine.broken_at = 1
    return engine


def test_batches_and_adapters_reach_an_engine_in_the_order_of_asking() -> None:
    """Also when nothing is awaited in between: every batch finds its version served."""

    async def go() -> None:
        engine = FakeEngine(0.001)
        rollout = rollout_of([engine])
        asked = []
        for version in range(1, 6):
            asked.append(asyncio.ensure_future(rollout.load({version: Ref(make_adapter(0.1))}, version)))
            asked.append(asyncio.ensure_future(rollout.generate([RolloutRequest(p, version, 0, 2) for p in make_prompts(3)], SAMPLING)))
        await asyncio.gather(*asked)
        await rollout.close()

    asyncio.run(go())


def test_an_engine_beyond_the_needed_ones_rests_when_idle_and_comes_back_for_work() -> None:
    async def go() -> None:
        spare, faults, vacated = FakeEngine(0.001), list[Fault](), list[str]()
        seats = seats_of([FakeEngine(0.001), FakeEngine(0.001)], [spare], faults)
        rollout = RayRollout(seats, 1, release_idle_s=0.1, vacate=vacated.append)
        requests = [RolloutRequest(p, 7, 0, 2) for p in make_prompts(4)]
        await rollout.ready()
        await seats[1].up()
        await rollout.load({7: Ref(make_adapter(0.3))}, BASE_VERSION)
        await asyncio.sleep(0.2)
        assert len(rollout.engines) == 2, "who has just come is not sent away"
        await rollout.generate(requests, SAMPLING)
        await until(lambda: vacated == ["engine 1"])
        assert [seat.actor is None for seat in seats] == [False, True], "the needed one stays"
        await asyncio.sleep(0.2)
        assert seats[1].actor is None, "nobody asks for it while there is no work"
        await rollout.generate(requests, SAMPLING)
        await seats[1].up()
        await rollout.generate(requests, SAMPLING)
        assert spare.most_at_once == 1 and spare.served == {7: pytest.approx(0.3)}
        assert [(fault.what, fault.event) for fault in faults] == [("engine 1", FaultEvent.LEAVES), ("engine 1", FaultEvent.JOINS)]
        await rollout.close()

    asyncio.run(go())


def test_who_works_or_is_the_last_one_does_not_rest() -> None:
    async def go() -> None:
        vacated = list[str]()
        engines = [FakeEngine(0.001), FakeEngine(0.1)]
        seats = seats_of(engines)
        rollout = RayRollout(seats, 1, release_idle_s=0.1, vacate=vacated.append)
        requests = [RolloutRequest(p, BASE_VERSION, 0, 2) for p in make_prompts(4)]
        await rollout.ready()
        await seats[1].up()
        shards = await rollout.generate(requests, SAMPLING)  # one takes four times as long as an idle engine may stay
        assert len(shards) == 2 and not vacated
        engines[0].broken_at = 0
        await rollout.generate(requests, SAMPLING)
        await asyncio.sleep(0.3)
        assert not vacated and seats[1].actor is not None
        await rollout.close()

    asyncio.run(go())


async def until(is_so: Callable[[], bool]) -> None:
    for _ in range(500):
        if is_so():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it does not happen")
