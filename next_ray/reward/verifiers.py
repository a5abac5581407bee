"""What a completion is worth: 1 or 0, with a user's function between. Runs inside a disposable worker process, on hostile text.

A verdict is decided on one answer only. Nothing is tried a second way after a first reading failed, so listing guesses
never pays.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from next_ray.reward.final_number import final_number

EXACT = "exact"
NUMBER = "number"
MATH = "math"
GSM8K = "gsm8k"
CHOICE = "choice"
REGEX = "regex"
FORMAT = "format"
PYTHON = "python"
REASONING_GYM = "reasoning-gym"
FAMILIES = (EXACT, NUMBER, MATH, GSM8K, CHOICE, REGEX, FORMAT, PYTHON, REASONING_GYM)
LOADED_BY_NAME = (PYTHON, REASONING_GYM)
"""Families whose members are loaded one by one."""


def family(kind: str) -> str:
    """The part of a verifier's name before the colon."""
    return kind.partition(":")[0]


def load_unit(kind: str) -> str:
    """What has to be loaded for a verifier: its family, or just this one."""
    return kind if family(kind) in LOADED_BY_NAME else family(kind)


def load(name: str) -> None:
    """Import and warm up what a unit needs, so that no answer pays for it; raises ImportError."""
    member = name.partition(":")[2]
    if name == MATH:
        from next_ray.reward.math_answers import judge_math

        judge_math(r"\boxed{\frac{1}{2}}", "0.5")
    elif name in (GSM8K, CHOICE, FORMAT):
        import next_ray.reward.stated  # noqa: F401
    elif family(name) == PYTHON and member:
        from next_ray.reward.functions import load_function

        load_function(member)
    elif family(name) == REASONING_GYM:
        from next_ray.reward.gym_answers import warm_up

        warm_up(member)


def verify(kind: str, completion: str, answer: str, metadata: Mapping[str, Any]) -> float:
    """Judge one completion.

    Args:
        kind: a verifier's name: `exact`, `math`, ..., `regex:<pattern>`, `format:<form>`, `python:<module>:<function>`,
            `reasoning-gym:<task>`.
        completion: the model's text, unaltered.
        answer: the reference.
        metadata: for reasoning-gym, the prompt's `options`, `answer` and `metadata` as `data.sources` made them; a function gets it as
            it is.

    Returns:
        1.0 for right, 0.0 for wrong; functions may return what is between.
    """
    name, _, member = kind.partition(":")
    if name == EXACT:
        return judge_exact(completion, answer)
    if name == NUMBER:
        return judge_number(completion, answer)
    if name == MATH:
        from next_ray.reward.math_answers import judge_math

        return judge_math(completion, answer)
    if name == REGEX:
        return float(_pattern(member).fullmatch(completion) is not None)
    if name in (GSM8K, CHOICE, FORMAT):
        return _judge_stated(name, member, completion, answer)
    if name == PYTHON:
        from next_ray.reward.functions import judge_function

        return judge_function(member, completion, answer, metadata)
    if name == REASONING_GYM:
        from next_ray.reward.gym_answers import judge_gym

        return judge_gym(member, completion, metadata)
    raise ValueError(f"unknown verifier {kind!r}; {', '.join(FAMILIES)} exist")


def _judge_stated(name: str, form: str, completion: str, answer: str) -> float:
    from next_ray.reward import stated

    if name == FORMAT:
        return stated.judge_format(form, completion)
    return stated.judge_gsm8k(completion, answer) if name == GSM8K else stated.judge_choice(completion, answer)


@lru_cache(maxsize=256)
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text)


def judge_exact(completion: str, answer: str) -> float:
    """Equal after stripping white space, character by character: other scripts' digits and leading zeros are wrong."""
    return float(completion.strip() == answer.strip())


def judge_number(completion: str, answer: str) -> float:
    """The number the text ends with ("The sum is 12.") is the reference; texts that go on, or end in a calculation, are wrong."""
    return float(final_number(completion) == answer.strip())
