"""Worked problems before demonstrations: the token ids are those a run gives its engines, and nothing shown is trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from next_ray.config import DataSection
from next_ray.config.warmstart import DemonstrationsSection
from next_ray.data.demonstrations import load_demonstrations
from next_ray.data.few_shot import with_few_shot
from next_ray.data.prompts import user_prompt
from next_ray.data.template import PromptEncoder
from next_ray.errors import DataError
from tests.data.test_template import tokenizer


def written(path: Path, numbers: range) -> Path:
    path.write_text("".join(json.dumps({"question": f"{n}+1=", "answer": str(n + 1)}) + "\n" for n in numbers))
    return path


@pytest.mark.parametrize("from_file", [False, True])
def test_worked_problems_stand_before_every_prompt(tmp_path: Path, from_file: bool) -> None:
    fast = tokenizer(chat=from_file)
    fast.add_tokens(["+1="])  # one of more than a character, as in every real vocabulary of bytes
    path, shown = written(tmp_path / "d.jsonl", range(20)), written(tmp_path / "shown.jsonl", range(2))
    turns = [{"prompt": "0+1=", "answer": "1"}, {"prompt": "1+1=", "answer": "2"}]
    few_shot: Any = {"path": str(shown), "count": 2} if from_file else turns
    made = load_demonstrations(DemonstrationsSection.model_validate({"path": str(path), "few_shot": few_shot}), fast, 0)
    encoder = PromptEncoder(fast, with_few_shot(DataSection.model_validate({"few_shot": few_shot}), 0))
    expected = {tuple(encoder.encode(user_prompt(f"{n}+1=", "", "exact"))) for n in range(2, 20)}
    found = [tuple(int(token) for token in row.prompt) for row in (*made.train, *made.held_out)]
    assert set(found) == expected and len(found) == 18
    assert all(str(fast.decode(list(ids))).count("+1=") == 3 for ids in found)


def test_a_file_of_too_few_worked_problems_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "d.jsonl", range(3))
    section = DemonstrationsSection.model_validate({"path": str(path), "few_shot": {"path": str(path), "count": 4}})
    with pytest.raises(DataError, match=r"has 3 distinct problems, and data\.few_shot\.count=4"):
        load_demonstrations(section, tokenizer(chat=False), 0)
