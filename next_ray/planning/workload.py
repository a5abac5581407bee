"""What a job's texts are like, which no configuration says: lengths, and how many groups have something to teach.

Lengths of completions follow the survival function S(t) = (1 - t / M)^(M / m - 1) with mean m and longest M: everything runs to the end
for m = M, lengths are uniform for m = M / 2, and most are short for small m.
"""

from __future__ import annotations

from dataclasses import dataclass

from next_ray.config import Config
from next_ray.errors import ConfigError


@dataclass(frozen=True)
class Workload:
    """Mean tokens of a prompt and of a completion, the longest completion, and the share of groups with unequal rewards."""

    prompt_tokens: float
    response_tokens: float
    longest_response: int
    signal: float

    @property
    def _power(self) -> float:
        return self.longest_response / self.response_tokens - 1

    def surviving(self, token: float) -> float:
        """The share of completions with more than so many tokens."""
        return max(0.0, 1 - token / self.longest_response) ** self._power if self._power else 1.0

    @property
    def mean_age(self) -> float:
        """How many tokens the completions in work have on average, where new ones take the place of those that end."""
        return self.longest_response / (self._power + 2)


def workload_of(
    config: Config, prompt_tokens: float | None = None, response_tokens: float | None = None, signal: float | None = None
) -> Workload:
    """What the user says, or assumptions: half of the longest prompt and completion, and all groups with unequal rewards.

    Raises `ConfigError` for what the configuration does not allow.
    """
    longest_prompt, longest = config.data.max_prompt_tokens, config.rollout.max_response_tokens
    prompt, response = prompt_tokens or max(1.0, longest_prompt / 2), response_tokens or max(1.0, longest / 2)
    if not 1 <= prompt <= longest_prompt:
        raise ConfigError(f"--prompt-tokens {prompt:g} must be from 1 to data.max_prompt_tokens={longest_prompt}.")
    if not 1 <= response <= longest:
        raise ConfigError(f"--response-tokens {response:g} must be from 1 to rollout.max_response_tokens={longest}.")
    share = 1.0 if signal is None else signal
    if not 0 < share <= 1:
        raise ConfigError(f"--signal {share:g} must be above 0 and at most 1.")
    return Workload(prompt, response, longest, share)
