"""What a completion is worth: 1 or 0. Runs inside a disposable worker process, on text that may be hostile.

A verdict is decided on one answer only. Nothing is tried a second way after a first reading failed, so listing guesses
never pays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from next_ray.reward.final_number import final_number

EXACT = "exact"
NUMBER = "number"
MATH = "math"
REASONING_GYM = "reasoning-gym"
FAMILIES = (EXACT, NUMBER, MATH, REASONING_GYM)


def family(kind: str) -> str:
    """The part of a verifier's name before the colon: what has to be imported for it."""
    return kind.partition(":")[0]


def load(name: str) -> None:
    """Import and warm up what a family needs, so that no answer pays for it."""
    if name == MATH:
        from next_ray.reward.math_answers import judge_math

        judge_math(r"\boxed{\frac{1}{2}}", "0.5")
    elif name == REASONING_GYM:
        from next_ray.data.gym import reasoning_gym

        reasoning_gym()


def verify(kind: str, completion: str, answer: str, metadata: Mapping[str, Any]) -> float:
    """Judge one completion.

    Args:
        kind: `exact`, `number`, `math` or `reasoning-gym:<task>`.
        completion: the model's text, unaltered.
        answer: the reference.
        metadata: for reasoning-gym, the prompt's `options`, `answer` and `metadata` as `data.sources` made them.

    Returns:
        1.0 for right, 0.0 for wrong.
    """
    name = family(kind)
    if name == EXACT:
        return judge_exact(completion, answer)
    if name == NUMBER:
        return judge_number(completion, answer)
    if name == MATH:
        from next_ray.reward.math_answers import judge_math

        return judge_math(completion, answer)
    if name == REASONING_GYM:
        from next_ray.reward.gym_answers import judge_gym

        return judge_gym(kind.partition(":")[2], completion, metadata)
    raise ValueError(f"unknown verifier {kind!r}; {', '.join(FAMILIES)} exist")


def judge_exact(completion: str, answer: str) -> float:
    """Equal after stripping white space, character by character: other scripts' digits and leading zeros are wrong."""
    return float(completion.strip() == answer.strip())


def judge_number(completion: str, answer: str) -> float:
    """The number the text ends with ("The sum is 12.") is the reference; texts that go on, or end in a calculation, are wrong."""
    return float(final_number(completion) == answer.strip())
