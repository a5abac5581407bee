"""Every named benchmark in its real layout, read by the real loader."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from next_ray.commands.problems import Reading, load_set, parse_sets
from next_ray.errors import ConfigError, DataError
from next_ray.evaluate.benchmarks import BENCHMARKS

GPQA = {"Question": "Which?", "Correct Answer": "yes", "Incorrect Answer 1": "a", "Incorrect Answer 2": "b", "Incorrect Answer 3": "c"}
PRO = {
    "question_id": 1,
    "question": "Which?",
    "options": ["a", "b", "N/A"],
    "answer": "B",
    "answer_index": 1,
    "category": "law",
    "src": "x",
}
LAYOUTS = {
    "aime24": ({"id": 60, "problem": "p", "solution": "s \\boxed{33}", "answer": "033", "url": "u", "year": "2024"}, "033"),
    "aime25": ({"problem": "p", "answer": "70", "id": "0"}, "70"),
    "amc23": ({"id": 0, "question": "p", "answer": 27.0, "url": "u"}, "27"),
    "minerva": ({"question": "p", "answer": "4.5e33"}, "4.5e33"),
    "olymmath-easy": ({"unique_id": "E-0", "problem": "p", "answer": "$\\frac{1}{2}$", "subject": "Algebra"}, "$\\frac{1}{2}$"),
    "gpqa": (GPQA, None),
    "mmlu-pro": (PRO, "B"),
    "math-500": ({"problem": "p", "solution": "s \\boxed{3}", "answer": "3", "subject": "Algebra", "level": 2, "unique_id": "t/1"}, "3"),
    "gsm8k": ({"question": "p", "answer": "Half of 4 is <<4/2=2>>2.\n#### 2"}, "2"),
}


def test_every_benchmark_has_a_layout_here():
    assert set(LAYOUTS) == set(BENCHMARKS)
    assert all((benchmark.address or "").startswith("hf://datasets/") for benchmark in BENCHMARKS.values())


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
@pytest.mark.parametrize("extension", ["jsonl", "parquet"])
def test_layout(name: str, extension: str, tmp_path: Path):
    row, answer = LAYOUTS[name]
    path = tmp_path / f"set.{extension}"
    if extension == "jsonl":
        path.write_text(json.dumps(row) + "\n")
    else:
        pq.write_table(pa.Table.from_pylist([row]), path)
    ((benchmark, address),) = parse_sets([f"{name}={path}"], [], None)
    (prompt,) = load_set(benchmark, address, Reading()).prompts
    text = prompt.messages[-1]["content"]
    assert prompt.verifier == benchmark.verifier
    assert "\\boxed{}" in text
    if name == "gpqa":
        assert f"({prompt.answer}) yes" in text
    else:
        assert prompt.answer == answer
    if name == "mmlu-pro":
        assert prompt.metadata["category"] == "law"


def test_names_and_templates_are_checked(tmp_path: Path):
    for wrong in (["nothing"], ["gsm8k=a.jsonl", "gsm8k=b.jsonl"], ["../x=a.jsonl"]):
        with pytest.raises(ConfigError, match="--data"):
            parse_sets(wrong, [], None)
    with pytest.raises(ConfigError, match="prompt"):
        parse_sets(["gsm8k"], [], "nothing")
    with pytest.raises(ConfigError, match="--verifier"):
        parse_sets(["gsm8k"], ["aime24=math"], None)
    ((own, _),) = parse_sets([f"own={tmp_path}/own.jsonl"], ["own=exact"], "{prompt}")
    assert (own.verifier, own.template) == ("exact", "{prompt}")
    with pytest.raises(DataError, match="--data own="):
        load_set(own, f"{tmp_path}/own.jsonl", Reading())
