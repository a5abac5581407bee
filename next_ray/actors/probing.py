"""The start-up probe: engines and learner must give the same tokens the same probabilities, whatever is handed over included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

from next_ray.actors.cluster import result
from next_ray.actors.launch import Launched
from next_ray.config import Config
from next_ray.errors import ActorLostError
from next_ray.progress import derive_seed
from next_ray.rollout.probe import TOLERANCE, ProbeReport, check, compare
from next_ray.types import BASE_VERSION, Adapter, Group, Prompt, Ref, RolloutRequest, Sampling

PROBE_VERSION = (1 << 31) - 2
"""Version of what the probe hands over; no training or evaluation version reaches it."""
START_VERSION = PROBE_VERSION - 1
"""Version of the weights that a learner that trains all of them starts from."""


async def probe(launched: Launched, initial: Ref[Adapter], prompts: Sequence[Prompt], config: Config) -> ProbeReport:
    """Sample a few tokens on every engine before and after a random change of the model, and compare log-probabilities.

    The change is an adapter, or, where all weights are trained, both other weights and an adapter beside them, as candidates are.
    `initial` is the policy that the learner starts from.

    Raises `ProbeError` when engine and learner differ by more than the number format explains, or the change does nothing in an engine.
    """
    sampling = Sampling(temperature=config.rollout.temperature, top_p=1.0, max_tokens=min(8, config.rollout.max_response_tokens))
    dtype = coarser(config.rollout.dtype, config.learner.dtype)
    trial = _Trial(launched, initial, prompts, sampling, derive_seed(config.run.seed, "probe"), dtype)
    return await (trial.of_weights(config.extrapolation.enabled) if config.learner.mode == "full" else trial.of_adapters())


class _Trial:
    """One probe's means."""

    def __init__(
        self, launched: Launched, initial: Ref[Adapter], prompts: Sequence[Prompt], sampling: Sampling, seed: int, dtype: str
    ) -> None:
        self._launched, self._initial, self._prompts, self._sampling = launched, initial, prompts, sampling
        self._seed, self._dtype = seed, dtype

    async def of_adapters(self) -> ProbeReport:
        """The base against a random adapter."""
        rollout = self._launched.rollout
        adapter = await self._launched.learner.probe_adapter(self._initial, self._seed)
        await rollout.load({PROBE_VERSION: adapter}, BASE_VERSION)
        return await self._checked(await self._sampled(BASE_VERSION), await self._sampled(PROBE_VERSION), adapter)

    async def of_weights(self, has_candidates: bool) -> ProbeReport:
        """The weights in force against changed ones; then, where there will be candidates, against an adapter beside them."""
        rollout = self._launched.rollout
        adapter, weights = await self._launched.learner.probe_weights(self._seed)
        await rollout.reload(PROBE_VERSION, weights)
        changed = await self._sampled(PROBE_VERSION)
        await rollout.reload(START_VERSION, self._initial)
        plain = await self._sampled(START_VERSION)
        report = await self._checked(plain, changed, adapter)
        if has_candidates:
            await rollout.load({PROBE_VERSION: adapter}, START_VERSION)
            report = await self._checked(plain, await self._sampled(PROBE_VERSION), adapter)
        await rollout.reload(BASE_VERSION, None)  # as they were found
        return report

    async def _sampled(self, version: int) -> list[list[Group]]:
        """A few completions of every engine."""
        requests = [RolloutRequest(p, version, self._seed + i, 2) for i, p in enumerate(self._prompts)]
        found = []
        for shard in await self._launched.rollout.on_each(requests, self._sampling):
            found.append(await result(shard.groups.value, "a rollout engine"))
        return found

    async def _checked(self, plain: list[list[Group]], changed: list[list[Group]], adapter: Ref[Adapter]) -> ProbeReport:
        """Compare engine by engine; the last one's report."""
        report = None
        if len(plain) != len(changed):
            raise ActorLostError("An engine came or went while engines and learner were compared.")
        for before, after in zip(plain, changed, strict=True):
            rows = [await self._judged(before, None), await self._judged(after, adapter), await self._judged(after, None)]
            report = compare(before, rows[0], after, rows[1], rows[2])
            check(report, self._dtype)
        assert report is not None
        return report

    async def _judged(self, groups: list[Group], adapter: Ref[Adapter] | None) -> list[Any]:
        return await self._launched.learner.logprobs(Ref(ray.put(groups)), adapter)


def coarser(*dtypes: str) -> str:
    """The number format that limits the agreement."""
    return max(dtypes, key=lambda dtype: TOLERANCE[dtype])
