"""What the rollout engines serve: the policy in force, an adapter or full weights, and passing adapters that are judged beside it.

Shape legend: P prompts, S samples.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from next_ray.config import Config
from next_ray.ports import Stages
from next_ray.progress import Progress, derive_seed
from next_ray.types import BASE_VERSION, Adapter, Prompt, Ref, RolloutRequest, Sampling

FIRST_PASSING_VERSION = 1 << 30
"""Versions from here on name adapters that are served for one evaluation only; training versions stay far below."""


@dataclass
class Serving:
    """The models on the engines. `current` is the policy in force (version `progress.version`), None while it is the untouched base.

    Adapters, candidates among them, are served side by side. Where all weights are trained, engines hold one policy at a time.
    """

    config: Config
    stages: Stages
    progress: Progress
    current: Ref[Adapter] | None = None
    _served: set[int] = field(default_factory=set)
    _weights: int = BASE_VERSION

    @property
    def adapter(self) -> Ref[Adapter]:
        """The policy in force, once there is one."""
        assert self.current is not None, "no update was made yet"
        return self.current

    async def serve(self, passing: Mapping[int, Ref[Adapter]] | None = None) -> None:
        """Make the engines serve the policy in force and the passing adapters, and nothing else."""
        adapters = dict(passing or {})
        if self.is_full:
            await self._reload(self.progress.version if self.current else BASE_VERSION, self.current)
            adapters.pop(self._weights, None)
        elif self.current is not None:
            adapters[self.progress.version] = self.current
        if set(adapters) != self._served:
            await self.stages.rollout.load(adapters, BASE_VERSION if self.current is None else self.progress.version)
            self._served = set(adapters)

    async def host(self, models: Mapping[str, Ref[Adapter] | None]) -> dict[str, int]:
        """Serve these adapters (None: the base) beside the policy in force, which may be one of them; returns the version of each."""
        passing = itertools.count(FIRST_PASSING_VERSION)
        versions = {label: self._version_of(adapter, passing) for label, adapter in models.items()}
        await self.serve({versions[label]: adapter for label, adapter in models.items() if adapter is not None})
        return versions

    async def compare(
        self, models: Mapping[str, Ref[Adapter] | None], prompts: Sequence[Prompt], num_samples: int, temperature: float, salt: int
    ) -> dict[str, tuple[tuple[float, ...], ...]]:
        """`accuracy` of policies (None: the base) on test prompts: side by side, full weights one after the other."""
        if not self.is_full:
            return await self.accuracy(prompts, await self.host(models), num_samples, temperature, "test", salt)
        found = {}
        passing = itertools.count(FIRST_PASSING_VERSION)
        for label, weights in models.items():
            version = self._version_of(weights, passing)
            await self._reload(version, weights)
            found |= await self.accuracy(prompts, {label: version}, num_samples, temperature, "test", salt)
        return found

    async def accuracy(
        self, prompts: Sequence[Prompt], versions: Mapping[str, int], num_samples: int, temperature: float, purpose: str, salt: int
    ) -> dict[str, tuple[tuple[float, ...], ...]]:
        """Correct (1) or not (0) [P][S] of each hosted version, side by side on the same prompts with the same seeds."""
        requests = [r for version in versions.values() for r in self.requests(prompts, version, num_samples, purpose, salt)]
        scores = await self.stages.rewards.score(await self.stages.rollout.generate(requests, self.sampling(temperature)))
        num = len(prompts)
        return {label: scores.accuracy[i * num : (i + 1) * num] for i, label in enumerate(versions)}

    def requests(self, prompts: Sequence[Prompt], version: int, num_samples: int, purpose: str, salt: int) -> list[RolloutRequest]:
        """One request per prompt, seeded by run, purpose and salt."""
        seed = self.config.run.seed
        return [RolloutRequest(p, version, derive_seed(seed, purpose, salt, i), num_samples) for i, p in enumerate(prompts)]

    def sampling(self, temperature: float) -> Sampling:
        """How completions are decoded at a temperature."""
        return Sampling(temperature=temperature, top_p=self.config.rollout.top_p, max_tokens=self.config.rollout.max_response_tokens)

    @property
    def is_full(self) -> bool:
        """Whether all weights are trained."""
        return self.config.learner.mode == "full"

    async def _reload(self, version: int, weights: Ref[Adapter] | None) -> None:
        if version == self._weights and version < FIRST_PASSING_VERSION:
            return
        await self.stages.rollout.reload(version, weights)
        self._weights, self._served = version, set()

    def _version_of(self, adapter: Ref[Adapter] | None, passing: Iterator[int]) -> int:
        if adapter is None:
            return BASE_VERSION
        return self.progress.version if adapter is self.current else next(passing)
