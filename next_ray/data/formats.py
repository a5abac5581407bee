"""One row of somebody's data set to messages and a reference answer.

Read are the layouts of verl and DAPO (`prompt` messages, `reward_model.ground_truth`), TRL (`prompt` text or messages),
OpenRLHF (`input`, `label`), GSM8K (`question`, `answer` ending in `#### x`), MATH and its kin (`problem`, `solution`,
`answer`), GPQA (`Question`, `Correct Answer`, `Incorrect Answer 1..3`), MMLU-Pro (`question`, `options`, `answer`,
`answer_index`) and MMLU (`question`, `choices`, a number as `answer`).
"""

from __future__ import annotations

import difflib
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np

from next_ray.data.boxed import last_boxed

PROMPT_FIELDS = ("prompt", "messages", "question", "problem", "input", "Question", "Problem")
ANSWER_FIELDS = ("reward_model.ground_truth", "ground_truth", "answer", "label", "Correct Answer", "Answer", "solution", "Solution")
INCORRECT_FIELDS = tuple(f"Incorrect Answer {number}" for number in (1, 2, 3))
KEPT_FIELDS = {
    **{name: name for name in ("data_source", "ability", "category", "level", "subject")},
    "High-level domain": "category",
    "Subdomain": "subject",
}
"""Fields that go with a prompt, and what they are called there."""
OPTION_FIELDS = ("options", "choices")
WORKED_FIELDS = ("solution", "Solution", "answer", "Answer")
TOP_FIELDS = frozenset(
    name.partition(".")[0] for name in (*PROMPT_FIELDS, *ANSWER_FIELDS, *INCORRECT_FIELDS, *KEPT_FIELDS, *OPTION_FIELDS, "answer_index")
)
"""All that `read_row` looks at when no field is named."""
PADDING = "N/A"
"""MMLU-Pro fills questions of fewer options with it."""
ROLES = ("system", "user", "assistant")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class FormatError(ValueError):
    """A row that is not a problem: what was expected and what was there."""


@dataclass(frozen=True)
class Problem:
    """A row understood."""

    messages: tuple[dict[str, str], ...]
    answer: str
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """What the user calls the place of a source and of its two fields, for messages; None: the fields cannot be named there."""

    path: str
    prompt_field: str | None = None
    answer_field: str | None = None

    @classmethod
    def of(cls, section: str) -> Setting:
        """The settings of a section of a job."""
        return cls(f"{section}.path", f"{section}.prompt_field", f"{section}.answer_field")


TRAIN = Setting.of("data.train")


def read_row(row: Any, prompt_field: str | None, answer_field: str | None, seed: int, setting: Setting = TRAIN) -> Problem:
    """Messages and answer of a row; named fields (dots reach inside) win over the search. Raises `FormatError`."""
    if not isinstance(row, Mapping):
        raise FormatError(f"expected a JSON object, found {_kind(row)}.")
    row = {str(name): _plain(value) for name, value in row.items()}
    metadata = {kept: str(row[name]) for name, kept in KEPT_FIELDS.items() if isinstance(row.get(name), str | int)}
    prompt_name, prompt = _find(row, prompt_field, PROMPT_FIELDS, "a prompt", setting.prompt_field)
    if prompt_field is None and answer_field is None:
        choice = _multiple_choice(row, prompt, seed)
        if choice is not None:
            return Problem(_messages("question", choice[0]), choice[1], metadata)
    messages = _messages(prompt_name, prompt)
    answer_name, answer = _find(row, answer_field, ANSWER_FIELDS, "an answer", setting.answer_field)
    return Problem(messages, _answer(answer_name, answer), metadata)


def worked_answer(row: Mapping[str, Any], problem: Problem, answer_field: str | None) -> str:
    """What a row shows as the model's turn: the text of `answer_field`, of its solution or of its answer, whole; else the reference."""
    for name in WORKED_FIELDS if answer_field is None else (answer_field,):
        value = _reach(row, name)
        if isinstance(value, str) and value.strip():
            return value.strip()
    return problem.answer


def has_options(row: Mapping[str, Any]) -> bool:
    """Whether a row is multiple choice, so that its answer is a letter and its own wording of it may be another."""
    return "Correct Answer" in row or any(isinstance(row.get(name), Sequence | np.ndarray) for name in OPTION_FIELDS)


def _plain(value: Any) -> Any:
    """Lists and Python numbers in place of numpy's, which readers of parquet hand out."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return {str(name): _plain(item) for name, item in value.items()} if isinstance(value, Mapping) else value


def _find(row: Mapping[str, Any], wanted: str | None, candidates: Sequence[str], what: str, option: str | None) -> tuple[str, Any]:
    for name in candidates if wanted is None else (wanted,):
        value = _reach(row, name)
        if value is not None and value != "" and value != []:
            return name, value
    present = ", ".join(map(str, row)) or "nothing"
    if wanted is None:
        advice = f"Name the field with {option}." if option else "Rename the field."
        raise FormatError(f"expected {what} in one of {', '.join(candidates)}; the row has {present}. {advice}")
    close = difflib.get_close_matches(wanted, [str(name) for name in row], n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise FormatError(f"expected {what} in the field {wanted!r} ({option}), which is missing or empty; the row has {present}.{hint}")


def _reach(row: Mapping[str, Any], name: str) -> Any:
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def _messages(name: str, value: Any) -> tuple[dict[str, str], ...]:
    if isinstance(value, str):
        if not value.strip():
            raise FormatError(f"the prompt in {name!r} is blank.")
        return ({"role": "user", "content": value},)
    if not isinstance(value, Sequence) or not value:
        raise FormatError(f"expected text or a list of messages in {name!r}, found {_kind(value)}.")
    messages = [_message(name, number, message) for number, message in enumerate(value, start=1)]
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()  # a worked answer, as supervised data sets carry it
    if not messages or messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
        raise FormatError(f"expected the messages in {name!r} to end with a user's question.")
    return tuple(messages)


def _message(name: str, number: int, message: Any) -> dict[str, str]:
    role = message.get("role") if isinstance(message, Mapping) else None
    if role not in ROLES:
        raise FormatError(f"message {number} in {name!r}: expected an object with role (one of {', '.join(ROLES)}) and content.")
    content = message.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        parts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in content]
        content = "".join(parts) if all(isinstance(part, str) for part in parts) else None  # type: ignore[arg-type]
    if not isinstance(content, str):
        raise FormatError(f"message {number} in {name!r}: expected its content to be text.")
    return {"role": role, "content": content}


def _answer(name: str, value: Any) -> str:
    """The reference answer as text: numbers without a trailing `.0`, GSM8K's after `####`, a solution's last boxed one."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, float | Decimal) and math.isfinite(value):
        return str(int(value)) if value == int(value) else str(value)
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise FormatError(f"expected text or a finite number as the answer in {name!r}, found {_kind(value)}.")
    answer: str | None = value
    if "####" in value:
        answer = value.rsplit("####", 1)[1]
    elif name.lower().endswith("solution"):
        answer = last_boxed(value)
        if answer is None:
            raise FormatError(f"expected \\boxed{{...}} or '#### x' in {name!r}, which ends in {value[-60:]!r}.")
    if not answer or not answer.strip():
        raise FormatError(f"the answer in {name!r} is blank.")
    return answer.strip()


def _multiple_choice(row: Mapping[str, Any], question: Any, seed: int) -> tuple[str, str] | None:
    """Question with lettered options and the right letter, for GPQA (shuffled by seed and question) and MMLU-Pro rows."""
    if not isinstance(question, str):
        return None
    if "Correct Answer" in row and all(name in row for name in INCORRECT_FIELDS):
        options = [str(row[name]).strip() for name in ("Correct Answer", *INCORRECT_FIELDS)]
        order = list(range(len(options)))
        random.Random(f"{seed} {question.strip()}").shuffle(order)
        return _lettered(question, [options[index] for index in order]), LETTERS[order.index(0)]
    options = next((row[name] for name in OPTION_FIELDS if isinstance(row.get(name), list) and row[name]), None)
    if options is None:
        return None
    right = _right_option(row, len(options))
    texts = [str(option).strip() for option in options]
    kept = [index for index, text in enumerate(texts) if text != PADDING or index == right]
    return _lettered(question, [texts[index] for index in kept]), LETTERS[kept.index(right)]


def _right_option(row: Mapping[str, Any], num_options: int) -> int:
    """The right option's number from 0, by letter or by number; raises `FormatError` when there is none, or two."""
    answer, number = row.get("answer"), row.get("answer_index")
    found = set[Any]()
    if isinstance(answer, str) and answer.strip():
        letter = answer.strip().upper()
        found.add(LETTERS.index(letter) if len(letter) == 1 and letter in LETTERS else None)
    found.update(value for value in (answer, number) if isinstance(value, int))
    if len(found) > 1 and None not in found:
        raise FormatError(f"answer {answer!r} and answer_index {number!r} name different options.")
    right = found.pop() if len(found) == 1 else None
    if num_options > len(LETTERS) or not isinstance(right, int) or not 0 <= right < num_options:
        raise FormatError(f"expected 'answer' to be the letter of one of {num_options} options, found {answer!r}.")
    return right


def _lettered(question: str, options: Sequence[str]) -> str:
    lines = [f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([question.strip(), "", *lines])


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true/false", int: "a number", float: "a number", type(None): "null"}
    return names.get(type(value), type(value).__name__)
