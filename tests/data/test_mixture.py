"""Several sources by weight: exact shares, every prompt in turn, exact resumption, and who owns a problem that two have."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from next_ray.data.prepare import filter_by_length, load_splits
from next_ray.data.prompts import user_prompt
from next_ray.data.sources import load_problems
from next_ray.data.stream import Cursor, Mixture, PromptStream, mixed, quotas
from next_ray.errors import ConfigError, DataError
from next_ray.models.tiny import build_tokenizer
from next_ray.settings import load_config
from next_ray.types import Prompt

SIZES_AND_WEIGHTS = st.lists(st.tuples(st.integers(1, 20), st.floats(0.01, 100)), min_size=1, max_size=4)


def mixture(sizes: list[int], weights: list[float]) -> tuple[list[Prompt], Mixture]:
    texts = [f"{source} {number}" for source, size in enumerate(sizes) for number in range(size)]
    prompts = [user_prompt(text, "", "exact") for text in texts]
    names = tuple(f"source {number}" for number in range(len(sizes)))
    return prompts, Mixture(names, tuple(weights), {p.id: int(text.split()[0]) for p, text in zip(prompts, texts, strict=True)})


def draw(stream: PromptStream, count: int) -> list[str]:
    return [prompt.messages[0]["content"] for prompt in stream.next(count)]


@settings(deadline=None)
@given(weights=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=6), extra=st.integers(0, 1000))
def test_quotas_are_proportional_to_the_nearest_prompt(weights: list[float], extra: int) -> None:
    total = len(weights) + extra
    counts = quotas(weights, total)
    assert sum(counts) == total and min(counts) >= 1
    exact = [weight / sum(weights) * total for weight in weights]
    if min(exact) >= 1:
        assert all(abs(count - share) < 1 + 1e-6 for count, share in zip(counts, exact, strict=True))


def test_quotas_are_the_largest_remainders() -> None:
    assert quotas([1, 1, 1], 10) == [4, 3, 3]
    assert quotas([0.7, 0.3], 10) == [7, 3]
    assert quotas([1000, 1, 1], 5) == [3, 1, 1]


@settings(deadline=None, max_examples=40)
@given(SIZES_AND_WEIGHTS, st.integers(0, 3))
def test_each_source_has_its_share_and_hands_out_all_before_any_comes_again(parts: list[tuple[int, float]], seed: int) -> None:
    sizes, weights = [size for size, _ in parts], [weight for _, weight in parts]
    prompts, mix = mixture(sizes, weights)
    drawn = draw(PromptStream(prompts, seed, mix), 3 * len(prompts))
    counts = quotas(weights, len(prompts))
    for start in range(0, len(drawn), len(prompts)):
        assert Counter(int(text.split()[0]) for text in drawn[start : start + len(prompts)]) == dict(enumerate(counts))
    for source, size in enumerate(sizes):
        own = [text for text in drawn if text.startswith(f"{source} ")]
        for start in range(0, len(own) - size + 1, size):
            assert len(set(own[start : start + size])) == size


@settings(deadline=None, max_examples=40)
@given(SIZES_AND_WEIGHTS, st.integers(0, 100), st.integers(1, 60))
def test_a_cursor_resumes_exactly(parts: list[tuple[int, float]], before: int, after: int) -> None:
    prompts, mix = mixture([size for size, _ in parts], [weight for _, weight in parts])
    whole, resumed = PromptStream(prompts, 0, mix), PromptStream(prompts, 0, mix)
    whole.next(before)
    resumed.restore(Cursor(**json.loads(json.dumps(asdict(whole.cursor)))))
    assert draw(resumed, after) == draw(whole, after)


def test_every_batch_is_close_to_the_weights_and_seeds_differ() -> None:
    prompts, mix = mixture([300, 100, 20], [1, 1, 2])
    stream = PromptStream(prompts, 0, mix)
    for _ in range(20):
        counts = Counter(text.split()[0] for text in draw(stream, 40))
        assert all(abs(counts[str(source)] - share) <= 2 for source, share in enumerate([10, 10, 20]))
    members = mix.members(prompts)
    orders = {tuple(mixed([np.array(positions) for positions in members], mix.weights, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


def test_a_source_without_prompts_is_told() -> None:
    prompts, mix = mixture([3, 1], [1, 1])
    with pytest.raises(DataError, match=r"source 1: no prompt of this source is left"):
        PromptStream(prompts[:3], 0, mix)


def configured(folder: Path, *overrides: str, sources: Sequence[object] = ()) -> list[str]:
    for name, rows in {
        "a": [("1+1=", "2"), ("2+2=", "4"), ("4+4=", "8")],
        "b": [("2+2=", "5"), ("33333+1=", "33334"), ("5+4=", "9")],
    }.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows))
    parts = sources or [
        {"source": {"kind": "file", "path": str(folder / "a.jsonl")}, "weight": 3, "verifier": "exact"},
        {"source": {"kind": "file", "path": str(folder / "b.jsonl")}},
        {"source": {"kind": "arithmetic", "size": 50, "question": "{a}{op}{b}=="}},
    ]
    return ["data.train=" + json.dumps({"kind": "mixture", "sources": parts}), "data.gate_prompts=2", "data.test_prompts=2", *overrides]


def test_a_problem_of_two_sources_belongs_to_the_first_and_conflicts_are_reported(tmp_path: Path) -> None:
    config = load_config(None, configured(tmp_path))
    loaded = load_problems(config.data.train, 0)
    assert loaded.mixture is not None and loaded.mixture.weights == (3, 1, 1)
    assert [(p.messages[0]["content"], p.answer, p.verifier) for p in loaded.prompts[:5]] == [
        ("1+1=", "2", "exact"),
        ("2+2=", "4", "exact"),
        ("4+4=", "8", "exact"),
        ("33333+1=", "33334", "math"),
        ("5+4=", "9", "math"),
    ]
    assert [len(positions) for positions in loaded.mixture.members(loaded.prompts)] == [3, 2, 50]
    report = str(loaded.report)
    assert "a.jsonl: 3 prompts from 3 rows; " in report
    assert "together: 55 prompts from 56 rows, 1 duplicates dropped, 1 of them with another answer" in report


def test_a_run_reports_the_counts_by_source_and_what_was_too_long(tmp_path: Path) -> None:
    config = load_config(None, configured(tmp_path, "data.max_prompt_tokens=8"))
    splits, report = load_splits(config)
    train, gate, test = ([p.messages[0]["content"] for p in part] for part in (splits.train, splits.gate, splits.test))
    assert f"{len(train)} to train on (" in report and f"{sum('==' in text for text in train)} arithmetic)" in report
    assert "33333+1=" in train and not set(train) & set(gate + test)
    kept, dropped = filter_by_length(splits, build_tokenizer(), config)
    assert dropped.startswith("1 prompts longer than 8 tokens left out: train 1 (0 ") and "1 " + str(tmp_path / "b.jsonl") in dropped
    assert len(PromptStream(kept.train, 0, kept.mixture).next(200)) == 200


def test_two_sources_of_a_kind_have_names_of_their_own(tmp_path: Path) -> None:
    parts = [{"source": {"kind": "arithmetic", "digits": digits, "size": 20}} for digits in (1, 2)]
    loaded = load_problems(load_config(None, configured(tmp_path, sources=parts)).data.train, 0)
    assert loaded.mixture is not None and loaded.mixture.names == ("arithmetic (source 1)", "arithmetic (source 2)")


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([{"source": {"kind": "file"}}], r"data\.train\.sources\[0\]\.source\.path is required"),
        (
            [{"source": {"kind": "arithmetic"}}, {"wieght": 1}],
            r"data\.train\.sources\[1\]\.wieght.*did you mean data\.train\.sources\.weight",
        ),
        ([{"source": {"kind": "arithmetic"}, "weight": 0}], r"data\.train\.sources\[0\]\.weight=0 .*greater than 0"),
        ([{"source": {"kind": "arithmetic"}, "verifier": "mth"}], r"there is no verifier 'mth'"),
        ([{"source": {"kind": "mixture", "sources": []}}], r"data\.train\.sources\[0\]\.source\.kind='mixture'.*'arithmetic'"),
    ],
)
def test_malformed_sources_are_named(tmp_path: Path, sources: list[object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, configured(tmp_path, sources=sources))
    with pytest.raises(ConfigError, match="at least 1"):
        load_config(None, ["data.train={kind: mixture, sources: []}"])
