"""Files of other people's data sets: layouts, places of errors, duplicates, and the same from S3."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from next_ray.config import Config, DataSection, FewShotFile, FileSource, MixtureEntry, MixtureSource
from next_ray.data.boxed import last_boxed
from next_ray.data.few_shot import with_few_shot
from next_ray.data.prepare import load_splits
from next_ray.data.sources import Loaded, load_problems
from next_ray.errors import DataError
from tests.s3_server import S3Server

USER = [{"role": "user", "content": "What is 2+2?"}]
VERL = {
    "data_source": "math_dapo",
    "prompt": [{"role": "user", "content": "Solve.\n\nRemember `Answer:`"}],
    "ability": "MATH",
    "reward_model": {"style": "rule", "ground_truth": "34"},
    "extra_info": {"index": 1},
}


def write(folder: Path, name: str, rows: list[Any]) -> Path:
    path = folder / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows, indent=1))
    return path


def load(path: Path | str, **fields: Any) -> Loaded:
    return load_problems(FileSource(path=str(path), **fields), 0)


@pytest.mark.parametrize("extension", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        (VERL, "Solve.\n\nRemember `Answer:`", "34"),
        ({"prompt": "p", "ground_truth": 3}, "p", "3"),
        ({"messages": [*USER, {"role": "assistant", "content": "4"}], "answer": "4"}, "What is 2+2?", "4"),
        ({"input": "p", "label": "x=1"}, "p", "x=1"),
        ({"question": "p", "answer": "Half of 144 is 72.\n#### 72"}, "p", "72"),
        ({"problem": "p", "solution": r"so \boxed{1} or \boxed{\frac{a}{b}}", "level": "5"}, "p", r"\frac{a}{b}"),
        ({"problem": "p", "solution": "long", "answer": "7"}, "p", "7"),
        ({"problem": "p", "solution": "so\n#### 8", "answer": None}, "p", "8"),
        ({"question": "p", "answer": 27.0}, "p", "27"),
        ({"question": "p", "answer": 0.5}, "p", "0.5"),
        ({"question": "p", "answer": ["9"]}, "p", "9"),
        ({"question": "which?", "options": ["u", "v", "w"], "answer": "B", "answer_index": 1}, "which?\n\n(A) u\n(B) v\n(C) w", "B"),
        ({"prompt": "p", "question": "q", "input": "i", "answer": "a"}, "p", "a"),
        ({"messages": USER, "question": "q", "ground_truth": "g", "answer": "a"}, "What is 2+2?", "g"),
    ],
)
def test_layouts(tmp_path: Path, extension: str, row: dict[str, Any], prompt: str, answer: str) -> None:
    loaded = load(write(tmp_path, f"d.{extension}", [row]))
    assert [(p.messages[-1]["content"], p.answer, p.verifier) for p in loaded.prompts] == [(prompt, answer, "math")]
    json.dumps(dict(loaded.prompts[0].metadata))


def test_gpqa_options_are_shuffled_by_seed_and_question(tmp_path: Path) -> None:
    rows = [
        {"Question": f"q{n}", "Correct Answer": "right", **{f"Incorrect Answer {i}": f"wrong {i}" for i in (1, 2, 3)}} for n in range(60)
    ]
    path = write(tmp_path, "d.jsonl", rows)
    prompts = load(path).prompts
    for prompt in prompts:
        lines = prompt.messages[0]["content"].splitlines()[2:]
        assert f"({prompt.answer}) right" in lines
        assert sorted(line[4:] for line in lines) == ["right", "wrong 1", "wrong 2", "wrong 3"]
    assert {prompt.answer for prompt in prompts} == set("ABCD")
    assert load(path).prompts == prompts
    assert load(write(tmp_path, "turned.jsonl", rows[::-1])).prompts == prompts[::-1]
    assert load_problems(FileSource(path=str(path)), 1).prompts != prompts


def test_named_fields_win_and_reach_inside(tmp_path: Path) -> None:
    path = write(tmp_path, "d.jsonl", [{"prompt": "p", "question": "q", "answer": "a", "meta": {"gold": 5}, "a.b": "dotted"}])
    loaded = load(path, prompt_field="question", answer_field="meta.gold")
    assert (loaded.prompts[0].messages[0]["content"], loaded.prompts[0].answer) == ("q", "5")
    assert load(path, answer_field="a.b").prompts[0].answer == "dotted"
    with pytest.raises(DataError, match=r"line 1: .*'qestion'.*Did you mean 'question'"):
        load(path, prompt_field="qestion")


def test_system_message_stays_and_parts_are_joined(tmp_path: Path) -> None:
    content = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    row = {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": content}], "answer": "1"}
    prompt = load(write(tmp_path, "d.jsonl", [row])).prompts[0]
    assert prompt.messages == ({"role": "system", "content": "s"}, {"role": "user", "content": "ab"})
    assert prompt.id == load(write(tmp_path, "e.jsonl", [{"prompt": " ab\n", "answer": "1"}])).prompts[0].id


def test_duplicates_and_conflicts_are_counted(tmp_path: Path) -> None:
    rows = [("p", "1"), ("q", "2"), (" p\n", "1"), ("p", "3"), ("p", "3"), ("q", " 2 ")]
    loaded = load(write(tmp_path, "d.jsonl", [{"prompt": p, "answer": a} for p, a in rows]))
    assert [(p.messages[0]["content"], p.answer) for p in loaded.prompts] == [("p", "1"), ("q", "2")]
    report = loaded.report
    assert (report.rows, report.prompts, report.duplicates, report.conflicts) == (6, 2, 4, 2)
    assert "'p': '1' and '3'" in str(report)


GOOD = b'{"prompt": "p", "answer": "1"}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.jsonl", GOOD + b"\n{oops}\n", r"d\.jsonl, line 3: not valid JSON.*One JSON object per line"),
        ("d.jsonl", GOOD + b'{"prompt": "p", "ans', "line 2: not valid JSON"),
        ("d.jsonl", GOOD + b'{"prompt": "\xff", "answer": "1"}', "line 2: not UTF-8"),
        ("d.jsonl", GOOD + b"[1]", "line 2: expected a JSON object, found a list"),
        ("d.jsonl", GOOD + b'{"text": "p", "answer": "1"}', "line 2: expected a prompt in one of prompt, messages.*has text, answer"),
        ("d.jsonl", GOOD + b'{"prompt": "p", "gold": "1"}', r"line 2: expected an answer in one of reward_model\.ground_truth"),
        ("d.jsonl", b'{"prompt": "p", "answer": NaN}', "line 1: expected text or a finite number"),
        ("d.jsonl", b'{"prompt": "p", "answer": {"target": 1}}', "line 1: expected text or a finite number.*an object"),
        ("d.jsonl", b'{"prompt": "p", "solution": "no box"}', "line 1: expected .*boxed"),
        ("d.jsonl", b'{"prompt": "p", "answer": "text ####  "}', "line 1: the answer in 'answer' is blank"),
        ("d.jsonl", b'{"prompt": "  ", "answer": "1"}', "line 1: the prompt in 'prompt' is blank"),
        ("d.jsonl", b'{"prompt": [{"role": "robot", "content": "x"}], "answer": "1"}', "line 1: message 1 .*role"),
        ("d.jsonl", b'{"prompt": [{"role": "assistant", "content": "x"}], "answer": "1"}', "line 1: .*end with a user"),
        ("d.jsonl", b'{"question": "p", "options": ["a"], "answer": "B"}', "line 1: .*letter of one of 1 options"),
        ("d.jsonl", b"[" * 100_000, "line 1: not valid JSON"),
        ("d.jsonl", b"", "holds no problem"),
        ("d.jsonl", b"\n \n", "holds no problem"),
        ("d.json", b"[]", "holds no problem"),
        ("d.json", b"", "holds no problem"),
        ("d.json", b'[\n{"prompt": "p", "answer": "1"},\n{oops}]', "line 3: not valid JSON"),
        ("d.json", b'[{"prompt": "p", "answer": "1"}, {"prompt": "q"}]', "entry 2: expected an answer"),
        ("d.json", GOOD + b"{oops}", "line 2: not valid JSON"),
        ("d.parquet", b"PAR1 not really", "not a readable parquet file"),
        ("d.txt", b"a,b", r"\.jsonl, \.json, \.parquet, \.csv are read"),
    ],
)
def test_malformed_files_name_the_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_parquet_errors_name_the_row(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "answer": "1"}, {"prompt": "q", "answer": None}]
    with pytest.raises(DataError, match="row 2: expected an answer"):
        load(write(tmp_path, "d.parquet", rows))
    with pytest.raises(DataError, match="holds no problem"):
        empty = pa.table({"prompt": pa.array([], pa.string()), "answer": pa.array([], pa.string())})
        pq.write_table(empty, tmp_path / "empty.parquet")
        load(tmp_path / "empty.parquet")


def test_byte_order_mark_and_json_lines_in_a_json_file(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(b"\xef\xbb\xbf" + GOOD)
    (tmp_path / "d.json").write_bytes(GOOD + b'{"prompt": "q", "answer": "2"}')
    (tmp_path / "e.json").write_bytes(b'{"data": [' + GOOD + b"]}")
    assert [len(load(tmp_path / name).prompts) for name in ("d.jsonl", "d.json", "e.json")] == [1, 2, 1]


def test_missing_file_and_unknown_protocol(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        load("nowhere://bucket/d.jsonl")


def test_errors_name_the_setting(tmp_path: Path) -> None:
    good = FileSource(path=str(write(tmp_path, "d.jsonl", [{"prompt": "p", "answer": "1"}])))
    gone, odd = FileSource(path=str(tmp_path / "none.jsonl")), FileSource(path=str(write(tmp_path, "e.jsonl", [{"prompt": "p"}])))
    with pytest.raises(DataError, match=r"Check data\.train\.path\."):
        load_splits(Config(data=DataSection(train=gone)))
    with pytest.raises(DataError, match=r"Check data\.held_out\.path\."):
        load_splits(Config(data=DataSection(train=good, held_out=gone)))
    with pytest.raises(DataError, match=r"Name the field with data\.held_out\.answer_field\."):
        load_splits(Config(data=DataSection(train=good, held_out=odd)))
    mixture = MixtureSource(sources=(MixtureEntry(source=good), MixtureEntry(source=odd)))
    with pytest.raises(DataError, match=r"Name the field with data\.train\.sources\[1\]\.source\.answer_field\."):
        load_splits(Config(data=DataSection(train=mixture)))
    few_shot = FewShotFile(path=str(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match=r"Check data\.few_shot\.path\."):
        with_few_shot(DataSection(train=good, few_shot=few_shot), 0)


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{1} and \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {3}", "3"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{1} then \boxed{2", None),
        (r"\boxed 5", None),
        (r"\boxed", None),
        ("none", None),
        (r"\boxed{a\\}", r"a\\"),
    ],
)
def test_last_boxed(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


@pytest.mark.s3
def test_files_on_s3_are_the_same(tmp_path: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    for name, value in server.credentials.items():
        monkeypatch.setenv(name, value)
    options = {"endpoint_url": server.endpoint_url, "skip_instance_cache": True}
    remote = s3fs.S3FileSystem(**options)
    for name in ("d.jsonl", "d.parquet"):
        local = write(tmp_path, name, [VERL, {**VERL, "prompt": USER}])
        remote.put_file(str(local), f"{server.bucket}/data/{name}")
        prompts = load_problems(FileSource(path=f"{server.url}/data/{name}"), 0, "auto", options).prompts
        assert prompts == load(local).prompts
    with pytest.raises(DataError, match="no such file"):
        load_problems(FileSource(path=f"{server.url}/data/none.jsonl"), 0, "auto", options)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(DataError, match=r"s3://test-bucket/data/d\.jsonl: (access denied|cannot be read)"):
        load_problems(FileSource(path=f"{server.url}/data/d.jsonl"), 0, "auto", options)
