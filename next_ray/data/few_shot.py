"""Worked problems that are shown before every prompt, and kept out of what is trained and judged on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from next_ray.config import DataSection, FewShotFile, FewShotTurn
from next_ray.data.files import read_rows
from next_ray.data.formats import FormatError, Setting, has_options, read_row, worked_answer
from next_ray.data.prompts import prompt_text
from next_ray.errors import ConfigError, DataError
from next_ray.types import Prompt

PLACEHOLDER = "{answer}"
SETTING = Setting.of("data.few_shot")


def with_few_shot(data: DataSection, seed: int, storage_options: Mapping[str, Any] | None = None) -> DataSection:
    """`data` with the turns of its few-shot file written out, so that nobody behind the driver needs the file.

    Raises:
        ConfigError: `answer_template` has no place for the answer.
        DataError: the file is missing or malformed, or has fewer distinct problems than `count`.
    """
    few_shot = data.few_shot
    if not isinstance(few_shot, FewShotFile):
        return data
    if PLACEHOLDER not in few_shot.answer_template:
        raise ConfigError(f"data.few_shot.answer_template={few_shot.answer_template!r} has no {PLACEHOLDER}. Add it.")
    turns: dict[str, FewShotTurn] = {}
    for row in read_rows(few_shot.path, storage_options or {}, setting=SETTING):
        place = f"{few_shot.path}, {row.place}"
        try:
            problem = read_row(row.value, few_shot.prompt_field, few_shot.answer_field, seed, SETTING)
        except FormatError as error:
            raise DataError(f"{place}: {error}") from error
        questions = [message for message in problem.messages if message["role"] != "system"]
        if len(questions) != 1:
            raise DataError(f"{place}: a worked problem is one question, and this one has {len(questions)} turns. Leave it out.")
        answer = problem.answer if has_options(row.value) else worked_answer(row.value, problem, few_shot.answer_field)
        turn = FewShotTurn(prompt=questions[0]["content"], answer=few_shot.answer_template.replace(PLACEHOLDER, answer))
        turns.setdefault(prompt_text(questions), turn)
        if len(turns) == few_shot.count:
            return data.model_copy(update={"few_shot": tuple(turns.values())})
    raise DataError(f"{few_shot.path} has {len(turns)} distinct problems, and data.few_shot.count={few_shot.count}. Lower the count.")


def without_shown(prompts: Sequence[Prompt], few_shot: Sequence[FewShotTurn] | FewShotFile) -> list[Prompt]:
    """The prompts that are not among the worked problems, by stripped text. The turns must have been written out."""
    assert not isinstance(few_shot, FewShotFile), "with_few_shot comes first"
    shown = {turn.prompt.strip() for turn in few_shot}
    return [prompt for prompt in prompts if prompt_text(prompt.messages) not in shown]
