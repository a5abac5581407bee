"""Procedural sources: what is drawn, from which seed, and what is refused."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from next_ray.config import ArithmeticSource, FileSource, ReasoningGymSource
from next_ray.data.gym import reasoning_gym
from next_ray.data.sources import load_problems
from next_ray.errors import DataError


def arithmetic(**fields: Any) -> ArithmeticSource:
    return ArithmeticSource(**fields)


def gym_source(**fields: Any) -> ReasoningGymSource:
    return ReasoningGymSource(**fields)


@settings(deadline=None, max_examples=25)
@given(digits=st.integers(1, 9), operations=st.sampled_from(["+", "-", "+-", "++"]), size=st.integers(1, 100), seed=st.integers(0, 2**31))
def test_arithmetic_is_right_distinct_and_deterministic(digits: int, operations: str, size: int, seed: int) -> None:
    source = arithmetic(digits=digits, operations=operations, size=size)
    loaded = load_problems(source, seed)
    texts = [prompt.messages[0]["content"] for prompt in loaded.prompts]
    assert len(set(texts)) == size == loaded.report.prompts and loaded.report.duplicates == 0
    for prompt, text in zip(loaded.prompts, texts, strict=True):
        parts = re.fullmatch(r"(\d+)([+-])(\d+)=", text)
        assert parts is not None and parts[2] in operations
        assert max(len(parts[1]), len(parts[3])) <= digits
        assert int(prompt.answer) == (int(parts[1]) + int(parts[3]) if parts[2] == "+" else int(parts[1]) - int(parts[3]))
        assert prompt.verifier == "exact" and prompt.metadata == {}
    assert load_problems(source, seed).prompts == loaded.prompts


def test_arithmetic_seeds_draw_different_problems() -> None:
    first, second = ({p.id for p in load_problems(arithmetic(digits=3, size=1000), seed).prompts} for seed in (0, 1))
    assert len(first & second) < 10


def test_arithmetic_prompts_are_pinned() -> None:
    prompts = load_problems(arithmetic(digits=3, size=20000), 0).prompts
    assert [prompt.messages[0]["content"] for prompt in prompts[:3]] == ["640+274=", "882+133=", "325+374="]
    assert prompts[0].id == "3ac3777de973d7a3"


def test_all_of_a_small_space_can_be_drawn_and_no_more() -> None:
    assert len(load_problems(arithmetic(digits=1, size=100), 3).prompts) == 100
    with pytest.raises(DataError, match=r"size=101: only 10 x 10 x 1 operation\(s\) = 100 distinct"):
        load_problems(arithmetic(digits=1, size=101), 3)


def test_reasoning_gym_is_its_own_data_set() -> None:
    source = gym_source(task="chain_sum", size=50, options={"min_terms": 2, "max_terms": 2, "min_digits": 3, "max_digits": 3})
    loaded = load_problems(source, 7)
    reference = reasoning_gym().create_dataset("chain_sum", size=50, seed=7, min_terms=2, max_terms=2, min_digits=3, max_digits=3)
    assert [(p.messages[0]["content"], p.answer) for p in loaded.prompts] == [(entry["question"], entry["answer"]) for entry in reference]
    assert {p.verifier for p in loaded.prompts} == {"reasoning-gym:chain_sum"}
    assert json.loads(json.dumps(dict(loaded.prompts[0].metadata)))["metadata"]["source_dataset"] == "chain_sum"


def test_reasoning_gym_duplicates_are_counted() -> None:
    options = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    loaded = load_problems(gym_source(task="chain_sum", size=300, options=options), 0)
    dataset = reasoning_gym().create_dataset("chain_sum", size=300, seed=0, **options)
    distinct = {entry["question"].strip() for entry in dataset}
    assert len(loaded.prompts) == len(distinct) < 300
    assert (loaded.report.duplicates, loaded.report.conflicts) == (300 - len(distinct), 0)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (gym_source(task="chain_sums"), "did you mean 'chain_sum'"),
        (gym_source(task="composite"), "no task 'composite'"),
        (gym_source(task="chain_sum", options={"min_term": 2}), "did you mean 'min_terms'"),
        (gym_source(task="chain_sum", options={"seed": 2}), r"set run\.seed"),
        (gym_source(task="chain_sum", options={"min_terms": 9, "max_terms": 2}), "are refused"),
    ],
)
def test_reasoning_gym_mistakes_are_named(source: ReasoningGymSource, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_problems(source, 0)


def test_a_chosen_verifier_replaces_the_automatic_one() -> None:
    assert load_problems(arithmetic(size=5), 0, "math").prompts[0].verifier == "math"
    prompt = load_problems(gym_source(task="chain_sum", size=5), 0, "exact").prompts[0]
    assert (prompt.verifier, prompt.metadata) == ("exact", {})
    for source in (arithmetic(size=5), FileSource(path="unread.jsonl")):
        with pytest.raises(DataError, match="only what reasoning-gym generated"):
            load_problems(source, 0, "reasoning-gym")
