"""Answers made to break, stall or fool the verifiers: all worth nothing, and the honest ones between them unharmed."""

from __future__ import annotations

from typing import Any

import pytest

from next_ray.config import ReasoningGymSource, RewardSection
from next_ray.data.prompts import user_prompt
from next_ray.data.sources import load_problems
from next_ray.reward.pool import VerifierPool
from next_ray.types import Prompt, Verdict

COUNTDOWN = load_problems(ReasoningGymSource(task="countdown", size=1), 0).prompts[0]
INTEGRAL = load_problems(ReasoningGymSource(task="simple_integration", size=1), 0).prompts[0]

BOXED = [
    "9^{9^{9^{9}}}",
    r"\frac{" * 400 + "1" + "}{2}" * 400,
    "{" * 900 + "x" + "}" * 900,
    "(" * 900 + "x" + ")" * 900,
    "1+" * 900 + "1",
    r"\sqrt{" * 300 + "x" + "}" * 300,
    "x^{" + "9" * 1500 + "}",
    "9" * 1999,
    "9" * 1_000_000,
    "-" * 1900 + "1",
    r"\int e^{x^{x^x}} dx",
    r"\lim_{x \to \infty} x^{x^{x}}",
    r"\sum_{n=1}^{\infty} \frac{1}{n^{n^n}}",
    r"\text{__import__('os').system('true')}",
    "__import__('os')._exit(0)",
    "exec('while True: pass')",
    "lambda: (yield)",
    r"\input{/etc/passwd}",
    "\x00",
    "\ud800\udfff",
    "\u202e5",
    "NaN",
    r"\infty",
    r"\emptyset",
    "None",
    "True",
    r"\text{anything}",
    "0=0",
    "x=x",
    "1<2",
    "5 or 7",
    "1,2,3,4,5,6,7",
    r"\{1,2,3,4,5,6,7\}",
    r"(-\infty, \infty)",
    r"\mathbb{R}",
    r"7 \text{ or not } 7",
    r"\frac{0}{0}",
    r"\frac{7}{0}",
    "3+4",
    r"\boxed",
    r"7} \boxed{8",
    "$" * 1000,
    r"\\" * 900,
    "&" * 1000,
]
PROSE = [
    r"\boxed{7} \boxed{8}",
    r"\boxed{" * 20_000,
    r"\boxed{7}" * 1000 + r"\boxed{",
    "}" * 100_000,
    "7 " * 100_000,
    "Answer: 7\nAnswer: 8",
    "Answer:" * 100_000,
    "\n" * 1_000_000,
    " \t" * 500_000 + "Answer",
    "*" * 500_000 + "answer:",
    "The answer is 7.",
    "",
]
STALLING = [r"10^{10^{10}}", "1000000!", r"(x+1)^{100000}"]
COUNTDOWN_TEXTS = [
    "9" * 190,
    "1/0",
    "(" * 150,
    "__import__('os')._exit(0)",
    "exit()",
    "().__class__.__bases__[0].__subclasses__()",
    "<answer>" * 10_000,
    "<answer></answer>",
    "1e999999999",
    "[x for x in iter(int, 1)]",
]


def hostile() -> list[tuple[str, Prompt]]:
    items = [(rf"\boxed{{{text}}}", user_prompt("q", "7", "math")) for text in BOXED]
    items += [(rf"\boxed{{{text}}}", user_prompt("q", "x+1", "math")) for text in BOXED]
    items += [(text, user_prompt("q", "7", "math")) for text in PROSE]
    items += [(rf"\boxed{{{text}}}", user_prompt("q", "x+1", "math")) for text in STALLING]
    items += [(text, COUNTDOWN) for text in COUNTDOWN_TEXTS]
    items += [(text, INTEGRAL) for text in COUNTDOWN_TEXTS]
    return [*items, ("2**(10**10)", COUNTDOWN)]


@pytest.mark.slow
def test_hostile_answers_earn_nothing_and_harm_nobody() -> None:
    honest = (r"\boxed{\frac{14}{2}x}", user_prompt("q", "7x", "math"))
    bad = hostile()
    items = [item for each in bad for item in (each, honest)]
    limits: dict[str, Any] = {"workers": 2, "wall_clock_s": 10.0, "memory_mib": 1024}
    with VerifierPool(RewardSection(**limits)) as pool:
        judged = pool.score(items)
        counters = pool.counters
    assert len(bad) >= 100
    assert [text[:60] for (text, _), judgement in zip(bad, judged[::2], strict=True) if judgement.reward != 0.0] == []
    assert {(j.reward, j.verdict) for j in judged[1::2]} == {(1.0, Verdict.OK)}
    assert counters["timeout"] == counters["crash"] == counters["memory"] == 0 and sum(counters[v.value] for v in Verdict) == len(items)
    assert counters["replaced"] == counters["retired"]
