"""Weighted sums, functions and patterns in real processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from next_ray.config import RewardSection
from next_ray.config.rewards import RewardPart
from next_ray.data.prompts import user_prompt
from next_ray.errors import ConfigError
from next_ray.reward.pool import Judgement, VerifierPool, check_functions
from next_ray.settings import load_config
from next_ray.types import Prompt, Verdict

FUNCTIONS = """
import os, time
def length(completion, answer, metadata):
    return min(1.0, len(completion) / 10)
def whole(completion, answer, metadata):
    return {"two": 2, "nan": float("nan"), "text": "x", "none": None, "negative": -0.1}.get(completion, 1)
def exits(completion, answer, metadata):
    print("noise")
    return os._exit(0) if completion == "exit" else 1
def raises(completion, answer, metadata):
    return {"1": 1.0}[completion]
def sees(completion, answer, metadata):
    return float((completion, answer, metadata) == ("c", "a", {}))
"""


@pytest.fixture(autouse=True)
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards.py").write_text(FUNCTIONS)
    (tmp_path / "json.py").write_text("raise SystemExit('a module of mine hides the library')")
    (tmp_path / "broken_rewards.py").write_text("import no_such_library\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path, ""])


def judge(texts: list[str], prompt: Prompt | None = None, **settings: Any) -> list[Judgement]:
    with VerifierPool(RewardSection(**settings)) as pool:
        return pool.score([(text, prompt or user_prompt("q", "1", settings.get("verifier", "exact"))) for text in texts])


def test_a_function_decides() -> None:
    judged = judge(["", "12345", "1234567890", "x" * 1000], verifier="python:my_rewards:length")
    assert [(j.reward, j.is_correct, j.verdict) for j in judged] == [
        (0.0, False, Verdict.OK),
        (0.5, False, Verdict.OK),
        (1.0, True, Verdict.OK),
        (1.0, True, Verdict.OK),
    ]
    assert judge(["c"], user_prompt("q", "a", "python:my_rewards:sees"))[0].is_correct


def test_what_a_function_does_wrong_costs_its_answer_only() -> None:
    bad = ["two", "nan", "text", "none", "negative"]
    judged = judge([*bad, "fine"], verifier="python:my_rewards:whole")
    assert [(j.reward, j.verdict) for j in judged] == [(0.0, Verdict.ERROR)] * 5 + [(1.0, Verdict.OK)]
    judged = judge(["1", "2", "1"], verifier="python:my_rewards:raises")
    assert [(j.reward, j.verdict) for j in judged] == [(1.0, Verdict.OK), (0.0, Verdict.ERROR), (1.0, Verdict.OK)]
    judged = judge(["1", "exit", "1"], verifier="python:my_rewards:exits")
    assert [(j.reward, j.verdict) for j in judged] == [(1.0, Verdict.OK), (0.0, Verdict.CRASH), (1.0, Verdict.OK)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:f", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("broken_rewards:f", "importing broken_rewards failed with ModuleNotFoundError: No module named 'no_such_library'"),
        ("my_rewards:nothing", "my_rewards has no function nothing"),
        ("my_rewards:__name__", "my_rewards has no function __name__"),
    ],
)
def test_functions_that_cannot_be_had_are_told_at_once(name: str, message: str) -> None:
    further = RewardSection(parts=(RewardPart(), RewardPart(verifier=f"python:{name}")))
    for config in (RewardSection(verifier=f"python:{name}"), further):
        with pytest.raises(ConfigError, match=message) as caught:
            check_functions(config)
        assert "PYTHONPATH" in str(caught.value)


def test_functions_that_are_there_pass_the_check() -> None:
    check_functions(RewardSection(verifier="python:my_rewards:length"))
    check_functions(RewardSection())


def test_catastrophic_backtracking_is_killed_by_the_clock() -> None:
    kind = "regex:(a+)+b"
    judged = judge(["aab", "a" * 60, "aab", "ab!"], verifier=kind, wall_clock_s=1.0)
    assert [(j.reward, j.verdict) for j in judged] == [
        (1.0, Verdict.OK),
        (0.0, Verdict.TIMEOUT),
        (1.0, Verdict.OK),
        (0.0, Verdict.OK),
    ]


def test_a_weighted_sum_whose_first_part_decides() -> None:
    parts = (
        RewardPart(verifier="auto", weight=1.0),
        RewardPart(verifier="regex:(?s).{0,8}", weight=0.25),
        RewardPart(verifier="regex:(?s).*!.*", weight=-0.5),
    )
    judged = judge([r"\boxed{7}", r"Answer: 7", r"\boxed{7} !!!!", "!", "?" * 9], user_prompt("q", "7", "math"), parts=parts)
    assert [(j.reward, j.is_correct) for j in judged] == [(1.0, True), (1.0, True), (0.5, True), (-0.25, False), (0.0, False)]


def test_judging_that_fails_earns_the_least_there_is() -> None:
    parts = (RewardPart(verifier="exact"), RewardPart(verifier="python:my_rewards:exits", weight=-0.5))
    judged = judge(["1", "exit", "2"], user_prompt("q", "1", "exact"), parts=parts)
    assert [(j.reward, j.is_correct) for j in judged] == [(0.5, True), (-0.5, False), (-0.5, False)]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("reward.verifier=judge", "there is no verifier 'judge'"),
        ("reward.verifier='regex:(a'", "no regular expression"),
        ("reward.verifier='regex:'", "there is no verifier"),
        ("reward.verifier='format:nice'", "there is no verifier"),
        ("reward.verifier='python:os.system'", "there is no verifier"),
        ("reward.verifier='python:a b:c'", "there is no verifier"),
        ("reward.parts=[{verifier: exact, weight: 0}]", "must be above 0"),
        ("reward.parts=[{verifier: exact}, {verifier: auto}]", "only the first"),
        ("reward.parts=[{verifier: exact, weight: 1000}]", "100"),
        ("reward.parts=[{verifier: exact, wieght: 1}]", "wieght"),
    ],
)
def test_what_makes_no_sense_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, [override])


def test_parts_and_another_verifier_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="exclude each other"):
        load_config(None, ["reward.verifier=math", "reward.parts=[{verifier: exact}]"])
    config = load_config(None, ["reward.parts=[{verifier: gsm8k}, {verifier: 'format:boxed', weight: 0.1}]"]).reward
    assert (config.deciding, config.further, config.weights) == ("gsm8k", ("format:boxed",), (1.0, 0.1))
    default = load_config(None, []).reward
    assert (default.deciding, default.further, default.weights) == ("auto", (), (1.0,))
