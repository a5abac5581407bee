"""Worked problems: as turns for a chat model, as text for others, and in none of the three sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from next_ray.config import DataSection, FewShotFile, FewShotTurn
from next_ray.data.few_shot import with_few_shot
from next_ray.data.prepare import filter_by_length, load_splits, with_worked_problems
from next_ray.data.prompts import make_prompt, prompt_text, user_prompt
from next_ray.data.template import PromptEncoder
from next_ray.errors import ConfigError, DataError
from next_ray.models.tiny import build_tokenizer
from next_ray.settings import load_config
from tests.data.test_template import tokenizer

TURNS = (FewShotTurn(prompt="1+1", answer="2"), FewShotTurn(prompt="2+{2}", answer="4"))


def render(chat: bool, prompt: Any, **fields: Any) -> str:
    return PromptEncoder(tokenizer(chat), DataSection(few_shot=TURNS, **fields)).render(prompt)


def test_a_chat_model_sees_them_as_earlier_turns() -> None:
    text = render(True, user_prompt("3+3", "6", "exact"), system_prompt="S", template="Q: {prompt}")
    turns = [("system", "S"), ("user", "Q: 1+1"), ("assistant", "2"), ("user", "Q: 2+{2}"), ("assistant", "4"), ("user", "Q: 3+3")]
    body = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    assert text == body + "<|im_start|>assistant\n"


def test_they_come_after_the_data_sets_own_system_message_and_before_its_turns() -> None:
    turns = [("system", "old"), ("user", "u1"), ("assistant", "a1"), ("user", "u2")]
    prompt = make_prompt([{"role": role, "content": content} for role, content in turns], "1", "math")
    text = render(True, prompt)
    assert [text.index(part) for part in ("old", "1+1", "2+{2}", "u1", "a1", "u2")] == sorted(
        text.index(part) for part in ("old", "1+1", "2+{2}", "u1", "a1", "u2")
    )
    assert prompt.messages[0]["content"] == "old" and len(prompt.messages) == 4


def test_plain_text_goes_on_from_question_to_answer_as_the_model_will() -> None:
    text = render(False, user_prompt("3+3", "6", "exact"), system_prompt="S", template="Q: {prompt}\nA: ")
    assert text == "S\n\nQ: 1+1\nA: 2\n\nQ: 2+{2}\nA: 4\n\nQ: 3+3\nA: "


def test_a_file_gives_its_first_distinct_problems_with_their_working(tmp_path: Path) -> None:
    path = tmp_path / "gsm8k.jsonl"
    rows = [("a", "1+1=<<1+1=2>>2\n#### 2"), (" a", "other\n#### 3"), ("b", "#### 4"), ("c", "#### 5")]
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows))
    data = DataSection(few_shot=FewShotFile(path=str(path), count=2, answer_template="Think. {answer}"))
    shown = with_few_shot(data, 0).few_shot
    assert shown == (FewShotTurn(prompt="a", answer="Think. 1+1=<<1+1=2>>2\n#### 2"), FewShotTurn(prompt="b", answer="Think. #### 4"))
    with pytest.raises(DataError, match=r"has 3 distinct problems, and data\.few_shot\.count=4"):
        with_few_shot(DataSection(few_shot=FewShotFile(path=str(path))), 0)
    with pytest.raises(ConfigError, match=r"no \{answer\}"):
        with_few_shot(DataSection(few_shot=FewShotFile(path=str(path), answer_template="yes")), 0)
    with pytest.raises(DataError, match=r"gsm8k\.jsonl, line 1: .*data\.few_shot\.prompt_field"):
        with_few_shot(DataSection(few_shot=FewShotFile(path=str(path), prompt_field="no")), 0)


def test_a_multiple_choice_file_shows_letters(tmp_path: Path) -> None:
    path = tmp_path / "mmlu.jsonl"
    row = {"question": "q", "options": ["N/A", "u", "v"], "answer": "C", "answer_index": 2, "cot_content": "x"}
    path.write_text(json.dumps(row))
    shown = with_few_shot(DataSection(few_shot=FewShotFile(path=str(path), count=1)), 0).few_shot
    assert shown == (FewShotTurn(prompt="q\n\n(A) u\n(B) v", answer="B"),)


@pytest.mark.parametrize("held_out", [False, True])
def test_shown_problems_are_in_none_of_the_sets_and_are_counted(tmp_path: Path, held_out: bool) -> None:
    rows = "".join(json.dumps({"question": f"{n}+1=", "answer": n + 1}) + "\n" for n in range(20))
    for name in ("train.jsonl", "held.jsonl"):
        (tmp_path / name).write_text(rows if name == "train.jsonl" else rows.replace("+1=", "+2="))
    (tmp_path / "shown.jsonl").write_text('{"question": "3+1=", "answer": 4}\n{"question": "5+2=", "answer": 7}\n')
    overrides = ["data.train.kind=file", f"data.train.path={tmp_path}/train.jsonl", f"data.few_shot.path={tmp_path}/shown.jsonl"]
    overrides += ["data.few_shot.count=2", "data.gate_prompts=8", "data.test_prompts=8"]
    if held_out:
        overrides += [f"data.held_out.path={tmp_path}/held.jsonl"]
    config = load_config(None, overrides)
    splits, report = load_splits(with_worked_problems(config))
    texts = [prompt_text(prompt.messages) for prompt in (*splits.train, *splits.gate, *splits.test)]
    assert not {"3+1=", "5+2="} & set(texts)
    assert len(texts) == (19 + 16 if held_out else 19)
    assert f"{2 if held_out else 1} left out because they are shown as examples" in report


def test_what_a_character_model_cannot_read_is_told_and_length_counts_the_examples() -> None:
    config = load_config(None, ["data.few_shot=[{prompt: '1+1=', answer: '2'}]"])
    splits, _ = load_splits(config)
    with pytest.raises(DataError, match=r"has the character '\\n'"):
        filter_by_length(splits, build_tokenizer(), config)
    encoder = PromptEncoder(tokenizer(False), DataSection(few_shot=TURNS))
    prompt = user_prompt("3+3", "6", "exact")
    assert encoder.fits([prompt], 30).dropped == 0
    assert len(encoder.encode(prompt)) == 1 + len("1+12\n\n2+{2}4\n\n3+3")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.few_shot=[{prompt: p}]", r"data\.few_shot"),
        ("data.few_shot=[{prompt: '', answer: a}]", r"data\.few_shot"),
        ("data.few_shot={path: f, number: 3}", r"data\.few_shot\.number"),
    ],
)
def test_malformed_settings_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, [override])
