"""The hostile corpus before all verifiers: none hangs or is right, and honest answers in between are judged."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from next_ray.config import RewardSection
from next_ray.data.prompts import user_prompt
from next_ray.reward.final_number import CLOSING
from next_ray.reward.pool import VerifierPool
from next_ray.types import Prompt, Verdict


def corpus() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hostile_corpus", Path(__file__).with_name("hostile_corpus.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CORPUS = corpus()
WALL_CLOCK_S = 2.0
FORMS = {
    "exact": ("%s",),
    "number": ("The sum is %s", "%s"),
    "math": (r"So $\boxed{%s}$.", "Answer: %s"),
    "gsm8k": ("#### %s", r"\boxed{%s}", "Answer: %s"),
    "choice": ("Answer: %s", r"\boxed{%s}", "The answer is %s"),
    "reasoning-gym": ("<answer>%s</answer>", "%s", r"\boxed{%s}"),
}
HONEST = {
    "exact": ("7", "7"),
    "number": ("It is 7.", "7"),
    "gsm8k": ("#### 7", "7"),
    "choice": ("Answer: C", "C"),
    "regex:(?s)<think>7 and [89]": ("<think>7 and 8", ""),
    "format:think": ("<think>7</think>C", ""),
    "format:think-answer": ("<think>7</think><answer>C</answer>", ""),
}


def hostile(family: str) -> list[str]:
    """Every item of the corpus once, as a completion that states it in one of the family's ways."""
    forms = FORMS.get(family.split(" ")[0].split(":")[0], ("%s",))
    stated = [forms[i % len(forms)].replace("%s", text) for i, text in enumerate(CORPUS.bare())]
    return [*stated, *CORPUS.texts()]


def between(honest: tuple[str, Prompt], bad: list[tuple[str, Prompt]]) -> Iterator[tuple[str, Prompt]]:
    for i, item in enumerate(bad):
        if i % 10 == 0:
            yield honest
        yield item
    yield honest


def check(honest: tuple[str, Prompt], texts: list[str], may_be_right: frozenset[str] = frozenset(), most_late: int = 12) -> None:
    bad = [(text, honest[1]) for text in texts]
    items = list(between(honest, bad))
    with VerifierPool(RewardSection(workers=2, wall_clock_s=WALL_CLOCK_S, memory_mib=1024)) as pool:
        pool.score([honest])
        started = time.monotonic()
        judged = pool.score(items)
        elapsed = time.monotonic() - started
        assert pool.score([honest] * 5)[-1].reward == 1.0
        counters = pool.counters
    fooled = [text[:80] for (text, _), j in zip(items, judged, strict=True) if j.reward and text != honest[0] and text not in may_be_right]
    unharmed = {(j.reward, j.verdict) for (text, _), j in zip(items, judged, strict=True) if text == honest[0]}
    late = [text[:80] for (text, _), j in zip(items, judged, strict=True) if j.verdict is not Verdict.OK and j.verdict is not Verdict.ERROR]
    assert fooled == [] and unharmed == {(1.0, Verdict.OK)}
    assert len(late) <= most_late and counters["replaced"] - counters["retired"] <= 2 * most_late, (late, elapsed)


def test_the_corpus_is_large_and_distinct() -> None:
    everything = [*CORPUS.bare(), *CORPUS.texts()]
    assert len(set(everything)) == len(everything) >= 200


MATHEMATICAL = {
    "7": r"\boxed{7}",
    "x+1": r"\boxed{1+x}",
    r"\{1, 2\}": r"Answer: 2, 1",
    "x > 5": "Answer: $5 < x$",
}


def test_hostile_answers_to_math_in_one_pool() -> None:
    """None takes more than a small part of the wall clock: none is late, no process is lost."""
    items = [item for reference, right in MATHEMATICAL.items() for item in mathematical(reference, right)]
    with VerifierPool(RewardSection(workers=2, wall_clock_s=10.0, memory_mib=1024, verifier="math")) as pool:
        judged = pool.score(items)
        counters = pool.counters
    right = set(MATHEMATICAL.values())
    assert [(text[:80], prompt.answer) for (text, prompt), j in zip(items, judged, strict=True) if j.reward and text not in right] == []
    assert {(j.reward, j.verdict) for (text, _), j in zip(items, judged, strict=True) if text in right} == {(1.0, Verdict.OK)}
    assert {name for name, count in counters.items() if count} <= {"ok", "retired", "replaced"}
    assert counters["replaced"] == counters["retired"]


def mathematical(reference: str, right: str) -> list[tuple[str, Prompt]]:
    """The whole corpus for an integer and an expression, a third of it for the others."""
    prompt = user_prompt("q", reference, "math")
    texts = hostile("math")[:: 1 if reference in ("7", "x+1") else 3]
    return list(between((right, prompt), [(text, prompt) for text in texts]))


@pytest.mark.parametrize("family", HONEST)
def test_hostile_answers_to_plain_verifiers(family: str) -> None:
    text, answer = HONEST[family]
    kind = family
    texts = hostile(family)
    if family == "number":  # what ends with 7 states it, whatever surrounds it
        texts = [text for text in texts if not text.rstrip(CLOSING).endswith("7")]
    may_be_right = frozenset(["<think>7</think>8"]) if kind == "format:think" else frozenset()
    check((text, user_prompt("q", answer, kind)), texts, may_be_right)


def test_a_box_is_a_form_and_says_nothing_of_its_content() -> None:
    boxes = [text for text in CORPUS.texts() if "\\boxed" in text]
    with VerifierPool(RewardSection(wall_clock_s=WALL_CLOCK_S)) as pool:
        judged = pool.score([(text, user_prompt("q", "", "format:boxed")) for text in hostile("math")])
        assert {j.verdict for j in judged} == {Verdict.OK}
        right = [j.reward for j in pool.score([(text, user_prompt("q", "", "format:boxed")) for text in boxes])]
    assert 0.0 in right and 1.0 in right
