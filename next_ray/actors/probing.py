"""The start-up probe: engines and learner must give the same tokens the same probabilities, adapter included."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import ray

from next_ray.actors.launch import Launched
from next_ray.config import Config
from next_ray.progress import derive_seed
from next_ray.rollout.probe import TOLERANCE, ProbeReport, check, compare
from next_ray.types import BASE_VERSION, Group, Prompt, Ref, RolloutRequest, Sampling

PROBE_VERSION = (1 << 31) - 2
"""Adapter version of the probe; no training or evaluation version reaches it."""


async def probe(launched: Launched, prompts: Sequence[Prompt], config: Config) -> ProbeReport:
    """Sample a few tokens on every engine under the base and under a random adapter, and compare log-probabilities.

    Raises `ProbeError` when they differ by more than the number format explains, or the adapter does nothing in an engine.
    """
    seed = derive_seed(config.run.seed, "probe")
    adapter = await launched.learner.probe_adapter(launched.initial, seed)
    await launched.rollout.load({PROBE_VERSION: adapter}, BASE_VERSION)
    sampling = Sampling(temperature=config.rollout.temperature, top_p=1.0, max_tokens=min(8, config.rollout.max_response_tokens))
    requests = [RolloutRequest(p, version, seed + i, 2) for version in (BASE_VERSION, PROBE_VERSION) for i, p in enumerate(prompts)]
    report = None
    for engine in launched.rollout.engines:
        (shard,) = await type(launched.rollout)([engine]).generate(requests, sampling)
        groups: list[Group] = await asyncio.wrap_future(shard.groups.value.future())
        halves = [groups[: len(prompts)], groups[len(prompts) :]]
        learner = [
            await launched.learner.logprobs(Ref(ray.put(half)), chosen) for half, chosen in zip(halves, (None, adapter), strict=True)
        ]
        across = await launched.learner.logprobs(Ref(ray.put(halves[1])), None)
        report = compare(halves[0], learner[0], halves[1], learner[1], across)
        check(report, coarser(config.rollout.dtype, config.learner.dtype))
    assert report is not None
    return report


def coarser(*dtypes: str) -> str:
    """The number format that limits the agreement."""
    return max(dtypes, key=lambda dtype: TOLERANCE[dtype])
