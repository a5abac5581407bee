r"""Answers to reasoning-gym tasks, judged by the task's own scorer, hardened.

The scorer sees one answer: the last `<answer>...</answer>`, else the last `\boxed{...}`, else the whole completion. For a
numeric reference the answer may be wrapped in prose, provided the number is its last word ("The answer is 12."). Only full
marks count: partial credit is 0. Scorers that would execute the answer, or that accept what is wrong, are bridled here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from next_ray.data.boxed import last_boxed
from next_ray.data.gym import reasoning_gym
from next_ray.reward.final_number import final_number

FULL_MARKS = 1.0

NUMERIC = re.compile(r"[+-]?[0-9][0-9,]*(?:\.[0-9]+)?")

ARITHMETIC = re.compile(r"[0-9+\-*/(). \t]{1,200}")
EXPRESSION = re.compile(r"[A-Za-z0-9+\-*/^(). \t]{1,1000}")
IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9]*")
FRACTION = re.compile(r"-?[0-9]{1,300}\s*/\s*-?[0-9]{1,300}|-?\\[dt]?frac\s*\{\s*-?[0-9]{1,300}\s*\}\s*\{\s*-?[0-9]{1,300}\s*\}")
DURATION = re.compile(r"-?[0-9]{1,9} days?|(?:-?[0-9]{1,9} days?, *)?[0-9]{1,9}:[0-9]{1,2}(?::[0-9]{1,2}(?:\.[0-9]{1,6})?)?")
BUTTONS = re.compile(r"[A-C](?:[\s,>→-]*[A-C])*", re.IGNORECASE)
MOVES = re.compile(r"[UDLR](?:[\s,]*[UDLR])*", re.IGNORECASE)
ATTRIBUTE = re.compile(r"[A-Za-z)]\s*\.|\.\s*[A-Za-z]")
FUNCTIONS = frozenset({"sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "exp", "log", "ln", "sqrt", "pi"})

Guard = Callable[[str, Mapping[str, Any]], bool]


def judge_gym(task: str, completion: str, metadata: Mapping[str, Any]) -> float:
    """1.0 when the task's scorer gives full marks to the one answer extracted, else 0.0.

    Args:
        task: name of the task.
        completion: the model's text.
        metadata: `options` of the task, the entry's `answer` (None where the task has no single one) and `metadata`.
    """
    reference = metadata["answer"]
    answer = extract(completion, reference)
    if not answer:
        return 0.0
    entry = {"answer": reference, "metadata": metadata["metadata"]}
    if task in EXACT_TASKS:
        return float(answer in EXACT_TASKS[task](entry))
    if task in GUARDS and not GUARDS[task](answer, entry):
        return 0.0
    if task in TUPLE_TASKS:
        entry["metadata"] = {name: _tuples(value) for name, value in entry["metadata"].items()}
    scorer = _scorer(task, json.dumps(metadata["options"], sort_keys=True))
    return float(scorer(answer, entry) >= FULL_MARKS)


def warm_up(task: str) -> None:
    """Import the library and, where a task is named, read the files that its scorer needs."""
    if task:
        _scorer(task, "{}")
    else:
        reasoning_gym()


def extract(completion: str, reference: str | None) -> str | None:
    """The one answer of a completion, stripped; None when a number is asked for and none is stated at the end."""
    answer = _last_tagged(completion)
    if answer is None:
        answer = last_boxed(completion) if "\\boxed" in completion else completion
    if answer is None:
        return None
    answer = answer.strip()
    if reference is not None and NUMERIC.fullmatch(reference):
        return final_number(answer)
    return answer


def _last_tagged(text: str) -> str | None:
    opening = text.rfind("<answer>")
    if opening < 0:
        return None
    closing = text.find("</answer>", opening)
    return None if closing < 0 else text[opening + len("<answer>") : closing]


@lru_cache(maxsize=64)
def _scorer(task: str, options: str) -> Callable[[str, dict[str, Any]], float]:
    return reasoning_gym().create_dataset(task, size=1, seed=0, **json.loads(options)).score_answer


def _tuples(value: Any) -> Any:
    """Lists as tuples, which JSON had turned into lists."""
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value


def _one(entry: Mapping[str, Any]) -> set[str]:
    return {str(entry["answer"]).strip()}


def _is_arithmetic(answer: str, entry: Mapping[str, Any]) -> bool:
    """Digits, brackets and four operators; no powers, which take for ever, and no deep nesting."""
    return ARITHMETIC.fullmatch(answer) is not None and not ("**" in answer or "//" in answer or "((((((((((((((((" in answer)


def _uses_the_numbers(answer: str, entry: Mapping[str, Any]) -> bool:
    used = sorted(int(number) for number in re.findall(r"[0-9]{1,18}", answer))
    return _is_arithmetic(answer, entry) and used == sorted(entry["metadata"]["numbers"])


def _is_closed_form(answer: str, entry: Mapping[str, Any]) -> bool:
    """Single letters and elementary functions only: nothing that Python or sympy would execute, no `Integral(...)`."""
    if not EXPRESSION.fullmatch(answer) or ATTRIBUTE.search(answer):
        return False
    return all(len(name) == 1 or name in FUNCTIONS for name in IDENTIFIER.findall(answer))


def _matches(form: re.Pattern[str]) -> Guard:
    return lambda answer, entry: form.fullmatch(answer.strip("$ \t\n")) is not None


def _has_the_letters(answer: str, entry: Mapping[str, Any]) -> bool:
    return answer.lower() == str(entry["answer"]).strip().lower()


def _is_close(answer: str, entry: Mapping[str, Any]) -> bool:
    try:
        return math.isclose(float(answer), float(entry["answer"]), rel_tol=0.01)
    except ValueError:
        return False


EXACT_TASKS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    # the scorer evaluates other answers as Python, for partial credit that would not count
    "binary_matrix": _one,
    "spiral_matrix": _one,
    "string_insertion": _one,
    "n_queens": lambda entry: entry["metadata"]["valid_answers"],
    # the scorer compares truth values of texts, so that any answer is right
    "game_of_life_halting": _one,
}
GUARDS: Mapping[str, Guard] = {
    # the scorer evaluates the answer
    "countdown": _is_arithmetic,
    "simple_integration": _is_closed_form,
    "intermediate_integration": _is_closed_form,
    "polynomial_multiplication": _is_closed_form,
    # the scorer also takes four other numbers
    "puzzle24": _uses_the_numbers,
    # the scorer finds the answer at the start of a longer text, or among other letters
    "fraction_simplification": _matches(FRACTION),
    "time_intervals": _matches(DURATION),
    "quantum_lock": _matches(BUTTONS),
    "sokoban": _matches(MOVES),
    "letter_jumble": _has_the_letters,
    "spell_backward": _has_the_letters,
    # the scorer also takes any prefix of the decimals
    "coin_flip": _is_close,
}
TUPLE_TASKS = frozenset({"arc_agi", "rearc"})
