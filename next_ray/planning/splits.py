"""Which devices sample and which train: every sensible division of the pools, the fastest step first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from next_ray.config import Config
from next_ray.errors import ConfigError
from next_ray.model_facts import ModelFacts
from next_ray.planning.devices import Pool
from next_ray.planning.sampling import can_span
from next_ray.planning.steps import Layout, Plan, plan
from next_ray.planning.workload import Workload

SPANS = (1, 2, 4, 8)
SHARES = 24
"""Numbers of engines that are tried in the first round; a second one looks between the best one's neighbours."""


@dataclass(frozen=True)
class Splits:
    """The job as it stands (None: its devices are not all there), the best layouts, fastest first, and one that does not fit."""

    own: Plan | None
    best: tuple[Plan, ...]
    misfit: Plan | None


def find_splits(config: Config, facts: ModelFacts, pools: Sequence[Pool], work: Workload, keep: int = 4) -> Splits:
    """Plans of the job's own layout and of the `keep` best; raises `ConfigError` when there is no room for an engine and a rank."""
    if sum(pool.count for pool in pools) < 2:
        raise ConfigError("--gpus: an engine and a learner rank need a device each. Give at least two, like 2xH100.")
    if len({pool.device.is_gpu for pool in pools}) > 1:
        raise ConfigError("--gpus: a run is on GPUs or on CPU cores, not on both. Leave one of them out.")
    found: dict[Layout, Plan] = {}
    for engines, learners in _pairs(pools):
        for spans in SPANS:
            if can_span(facts, engines.device, spans):
                found |= _search(config, facts, engines, learners, spans, work)
    fitting = [one for one in found.values() if one.fits]
    fitting.sort(key=lambda one: (round(one.step_s, 3), one.layout.num_devices, one.layout.spans))
    misfit = min((one for one in found.values() if not one.fits), key=_lack, default=None)
    return Splits(_own(config, facts, pools, work), tuple(fitting[:keep]), misfit)


def _lack(found: Plan) -> float:
    """By how much the fullest device is too full."""
    return max(need.num_bytes / need.has for need in found.needs)


def _pairs(pools: Sequence[Pool]) -> Iterator[tuple[Pool, Pool]]:
    """Whose devices sample and whose train: one kind each, or parts of one kind."""
    for engines in pools:
        for learners in pools:
            yield engines, learners


def _search(config: Config, facts: ModelFacts, engines: Pool, learners: Pool, spans: int, work: Workload) -> dict[Layout, Plan]:
    """Plans for numbers of engines of one width all over the range, then for those beside the best; the other devices train."""
    is_one_pool = engines is learners
    most = min((engines.count - is_one_pool) // spans, config.rollout.prompts_per_step)
    tried: dict[int, Plan] = {}

    def attempt(count: int) -> None:
        if 1 <= count <= most and count not in tried:
            left = learners.count - count * spans if is_one_pool else learners.count
            layout = Layout(count, spans, engines.device, min(left, _most_ranks(config)), 0, learners.device)
            tried[count] = _at_its_stage(config, facts, layout, work)

    for i in range(SHARES + 1):
        attempt(1 + round(i * (most - 1) / SHARES))
    if tried:
        centre, width = min(tried, key=lambda count: tried[count].step_s), max(1, most // SHARES)
        for i in range(-4, 5):
            attempt(centre + round(i * width / 4) if width > 4 else centre + i)
    return {found.layout: found for found in tried.values()}


def _most_ranks(config: Config) -> int:
    """More ranks than completions of a mini batch have nothing to do."""
    return (config.learner.mini_batch_prompts or config.rollout.prompts_per_step) * config.rollout.samples_per_prompt


def _at_its_stage(config: Config, facts: ModelFacts, layout: Layout, work: Workload) -> Plan:
    """At the job's own ZeRO stage, or where its learners do not hold that at the next one that they do."""
    found = plan(config, facts, replace(layout, zero_stage=config.learner.zero_stage), work)
    for stage in range(config.learner.zero_stage + 1, 4 if layout.ranks > 1 else 0):
        if found.fits or not found.needs[0].fits:
            break
        found = plan(config, facts, replace(layout, zero_stage=stage), work)
    return found


def _own(config: Config, facts: ModelFacts, pools: Sequence[Pool], work: Workload) -> Plan | None:
    """The job's own numbers, on the first pools with room for them."""
    rollout, learner = config.rollout, config.learner
    wanted = rollout.engines * rollout.tensor_parallel_size
    for engines, learners in _pairs(pools):
        both = wanted + learner.ranks if engines is learners else wanted
        if both <= engines.count and learner.ranks <= learners.count:
            spans = rollout.tensor_parallel_size
            layout = Layout(rollout.engines, spans, engines.device, learner.ranks, learner.zero_stage, learners.device)
            return plan(config, facts, layout, work)
    return None
