"""Rows laid out as in the data sets people train and report on, read from the kind of file each is published in."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from next_ray.config import FileSource
from next_ray.data.formats import read_row
from next_ray.data.sources import Loaded, load_problems
from next_ray.errors import DataError

DAPO_HEAD = "Solve the following math problem step by step. The last line of your response should be of the form Answer: $Answer.\n\n"


def load(path: Path, seed: int = 0) -> Loaded:
    return load_problems(FileSource(path=str(path)), seed)


def load_rows(folder: Path, rows: list[dict[str, Any]], seed: int = 0) -> Loaded:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load(path, seed)


def pairs(loaded: Loaded) -> list[tuple[str, str]]:
    return [(prompt.messages[-1]["content"], prompt.answer) for prompt in loaded.prompts]


def verl_row(text: str, answer: str, index: int) -> dict[str, Any]:
    return {
        "data_source": "openai/gsm8k",
        "prompt": np.array([{"role": "user", "content": text}], dtype=object),
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": answer},
        "extra_info": {"split": "train", "index": index, "scores": np.array([0.5, 1.0])},
    }


def test_verl_parquet_written_by_pandas_with_nested_structs_and_arrays(tmp_path: Path) -> None:
    frame = pd.DataFrame([verl_row("p1", "34", 0), verl_row("p2", "-1/2", 1)])
    frame.to_parquet(tmp_path / "train.parquet")
    loaded = load(tmp_path / "train.parquet")
    assert pairs(loaded) == [("p1", "34"), ("p2", "-1/2")]
    assert dict(loaded.prompts[0].metadata) == {"data_source": "openai/gsm8k", "ability": "math"}


def test_rows_in_memory_may_hold_arrays_and_array_scalars() -> None:
    problem = read_row(verl_row("p", "3", 0), None, None, 0)
    assert problem.messages == ({"role": "user", "content": "p"},) and problem.answer == "3"
    assert read_row({"question": "p", "answer": np.int64(7)}, None, None, 0).answer == "7"
    assert read_row({"question": "p", "answer": np.float32(27.0)}, None, None, 0).answer == "27"
    choice = {"question": "which?", "options": np.array(["u", "v"], dtype=object), "answer": "B", "answer_index": np.int64(1)}
    assert read_row(choice, None, None, 0).messages[0]["content"] == "which?\n\n(A) u\n(B) v"


def test_dapo_rows_are_repeated_and_some_contradict_each_other(tmp_path: Path) -> None:
    rows = [verl_row(DAPO_HEAD + text, answer, 0) for text, answer in [("a", "1"), ("b", "2")] * 100]
    rows += [verl_row(DAPO_HEAD + "a\n", "10", 0), verl_row("  " + DAPO_HEAD + "b", "2", 0)]
    pd.DataFrame(rows).to_parquet(tmp_path / "dapo-math-17k.parquet")
    loaded = load(tmp_path / "dapo-math-17k.parquet")
    assert pairs(loaded) == [(DAPO_HEAD + "a", "1"), (DAPO_HEAD + "b", "2")]
    report = loaded.report
    assert (report.rows, report.prompts, report.duplicates, report.conflicts) == (202, 2, 200, 1)
    assert "'1' and '10'" in str(report)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        # TRL: text, or messages with a system turn, and columns for the reward functions
        ({"prompt": "2+2", "ground_truth": "4", "difficulty": 3}, ("2+2", "4")),
        ({"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "2+2"}], "solution": r"\boxed{4}"}, ("2+2", "4")),
        # OpenRLHF
        ({"input": "2+2", "label": "4", "datasource": "x"}, ("2+2", "4")),
        # GSM8K: thousands separators stay, calculator marks go with the rest of the working
        ({"question": "How much?", "answer": "6*200=<<6*200=1200>>1200\n#### 1,200"}, ("How much?", "1,200")),
        # MATH-500
        (
            {"problem": "p", "solution": r"\boxed{1}", "answer": r"\left( 3, \frac{\pi}{2} \right)"},
            ("p", r"\left( 3, \frac{\pi}{2} \right)"),
        ),
        # AIME24 as published by three hands: solutions only, all fields, capitals; leading zeros stay
        ({"id": 60, "problem": "p", "solution": r"\boxed{204}", "url": "u"}, ("p", "204")),
        ({"id": 60, "problem": "p", "solution": "long", "answer": "025", "year": "2024"}, ("p", "025")),
        ({"ID": "2024-I-1", "Problem": "p", "Solution": "long", "Answer": 204}, ("p", "204")),
        # OlymMATH
        ({"problem": "p", "answer": r"\frac{1}{2}", "subject": "Algebra", "unique_id": "OlymMATH-EASY-0-EN"}, ("p", r"\frac{1}{2}")),
        # AMC23
        ({"id": 0, "question": "p", "answer": 27.0, "url": "u"}, ("p", "27")),
        ({"id": 0, "problem": "p", "answer": -0.5, "url": "u"}, ("p", "-0.5")),
    ],
)
def test_published_rows(tmp_path: Path, row: dict[str, Any], expected: tuple[str, str]) -> None:
    assert pairs(load_rows(tmp_path, [row])) == [expected]


def test_levels_and_categories_go_with_the_prompt_whatever_their_type(tmp_path: Path) -> None:
    math = load_rows(tmp_path, [{"problem": "p", "answer": "1", "subject": "Algebra", "level": 5}]).prompts[0]
    assert dict(math.metadata) == {"subject": "Algebra", "level": "5"}
    row = {"Question": "q", "Correct Answer": "r", **{f"Incorrect Answer {n}": f"w{n}" for n in (1, 2, 3)}}
    gpqa = load_rows(tmp_path, [{**row, "High-level domain": "Physics", "Subdomain": "Optics"}]).prompts[0]
    assert dict(gpqa.metadata) == {"category": "Physics", "subject": "Optics"}


def test_gpqa_is_published_as_csv_with_line_breaks_inside_cells(tmp_path: Path) -> None:
    names = ["Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3", "Explanation"]
    rows = [[f"Which, of {n}?\nSay \u2014", "right\n", "w1", "w2", "w3", "so, it is"] for n in range(40)]
    with (tmp_path / "gpqa_diamond.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([names, *rows])
    loaded = load(tmp_path / "gpqa_diamond.csv")
    assert len(loaded.prompts) == 40 and {prompt.answer for prompt in loaded.prompts} == set("ABCD")
    for prompt in loaded.prompts:
        assert f"\n({prompt.answer}) right" in prompt.messages[0]["content"]
    assert load(tmp_path / "gpqa_diamond.csv", seed=1).prompts != loaded.prompts


def test_csv_errors_name_the_row(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    for content, message in [
        ("question,answer\nq,1\nq2,\n", "row 2: expected an answer"),
        ("question,answer\nq,1,2\n", "row 1: 3 cells under 2 names"),
        ("", "holds no problem"),
    ]:
        path.write_text(content)
        with pytest.raises(DataError, match=message):
            load(path)
    path.write_bytes(b"question,answer\n\xff,1\n")
    with pytest.raises(DataError, match="not UTF-8"):
        load(path)


def test_mmlu_pro_parquet(tmp_path: Path) -> None:
    row = {"question": "Which?", "options": ["u", "v", "N/A", "w", "N/A"], "answer": "D", "answer_index": 3, "category": "law", "src": "x"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "test.parquet")
    prompt = load(tmp_path / "test.parquet").prompts[0]
    # options that are only padding go, and the letter goes with its option
    assert (prompt.messages[0]["content"], prompt.answer) == ("Which?\n\n(A) u\n(B) v\n(C) w", "C")
    assert prompt.metadata["category"] == "law"


def test_mmlu_has_choices_and_a_number(tmp_path: Path) -> None:
    loaded = load_rows(tmp_path, [{"question": "Which?", "subject": "law", "choices": ["u", "v"], "answer": 1}])
    assert pairs(loaded) == [("Which?\n\n(A) u\n(B) v", "B")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"options": ["u", "v"], "answer": "A", "answer_index": 1}, r"answer 'A' .*answer_index 1"),
        ({"options": ["u", "v"], "answer": "u v"}, "letter of one of 2 options"),
        ({"options": ["u", "v"], "answer": "", "answer_index": 2}, "letter of one of 2 options"),
        ({"choices": ["u", "v"], "answer": -1}, "letter of one of 2 options"),
    ],
)
def test_choices_that_contradict_themselves_are_refused(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_rows(tmp_path, [{"question": "Which?", **row}])
