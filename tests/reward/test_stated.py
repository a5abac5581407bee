"""Multiple choice, GSM8K, patterns and formats: what counts as stated."""

from __future__ import annotations

import pytest

from next_ray.reward.math_answers import judge_math
from next_ray.reward.verifiers import verify

RIGHT_LETTER = [
    r"\boxed{B}",
    r"So \boxed{A}, no, $\boxed{\text{B}}$.",
    r"\boxed{(B)}",
    r"\boxed{\textbf{(B)}}",
    r"\boxed{b}",
    r"Answer: C, so \boxed{B}",
    "Answer: B",
    "thinking\n\n**Answer:** (B)",
    "**Final answer: B.**",
    "Answer: $B$",
    r"Answer: \(\text{B}\)",
    "Answer: A\nAnswer: B",
    "The answer is (B)",
    "So the answer is B.",
    "It rains. Therefore, the correct answer is: **B**.",
    "The answer is A.\nThe answer is B.",
    "Answer: A\nThe answer is B.",
]
WRONG_LETTER = [
    "B",
    "(B)",
    "I like B",
    "B is the answer",
    r"\boxed{A}",
    r"\boxed{B} \boxed{A}",
    r"\boxed{A, B}",
    r"\boxed{AB}",
    r"\boxed{B or C}",
    r"\boxed{B",
    r"\boxed{}",
    r"\boxed{B} \boxed{",
    r"Answer: B or \boxed{A}",
    "Answer: A or B",
    "Answer: B\nAnswer: C",
    "Answer: B\nAnswer:",
    "The answer is A or B",
    "The answer is not B",
    "The answer isn't B",
    "The answer is B or C.",
    "The answer is (B). No, C.",
    "I doubt that the answer is B",
    "If the answer is B",
    "The answer is between B",
    "The answer is a\nbus",
    "Answer: В",  # noqa: RUF001 Cyrillic
    "Answer: Ｂ",  # noqa: RUF001 full width
    "Answer: \u202eB",
    "Answer: B\x00",
    "",
]


@pytest.mark.parametrize("completion", RIGHT_LETTER)
@pytest.mark.parametrize("answer", ["B", "(B)", " b "])
def test_choice_right(completion: str, answer: str) -> None:
    assert verify("choice", completion, answer, {}) == 1.0


@pytest.mark.parametrize("completion", WRONG_LETTER)
def test_choice_wrong(completion: str) -> None:
    assert verify("choice", completion, "B", {}) == 0.0


@pytest.mark.parametrize("sign", ["\u212a", "\u017f"])
def test_letters_that_fold_into_ascii_are_none(sign: str) -> None:
    assert verify("choice", f"Answer: {sign}", "K", {}) == verify("choice", f"Answer: {sign}", "S", {}) == 0.0


@pytest.mark.parametrize(
    ("completion", "answer", "reward"),
    [
        ("60 / 5 = <<60/5=12>>12\n#### 12", "12", 1),
        ("#### 12", "She has 5 + 7 = 12.\n#### 12", 1),
        ("#### $1,200.00", "1200", 1),
        ("#### -3\nDone.", "-3", 1),
        (r"\boxed{1{,}200}", "1,200", 1),
        (r"It is \boxed{\$12}.", "12", 1),
        (r"\boxed{12\%}", "12", 1),
        ("**Answer:** 012.50", "12.5", 1),
        ("Answer: 12.", "12", 1),
        ("#### 11\n#### 12", "12", 1),
        ("#### 12\n#### 11", "12", 0),
        (r"#### 11 or \boxed{12}", "12", 0),
        ("#### 11\n\\boxed{12}", "12", 0),
        ("#### 12 or 13", "12", 0),
        ("#### 12 million", "12", 0),
        ("#### 3 * 4", "12", 0),
        ("#### 24/2", "12", 0),
        ("#### 1e1", "10", 0),
        ("#### ١٢", "12", 0),
        ("#### −12", "-12", 0),  # noqa: RUF001
        ("#### ", "12", 0),
        ("####\n12", "12", 0),
        ("The answer is 12", "12", 0),
        ("12", "12", 0),
        ("#### NaN", "0", 0),
        ("#### -0", "0", 1),
        ("#### " + "9" * 1900, "9" * 1900, 1),
    ],
)
def test_gsm8k(completion: str, answer: str, reward: float) -> None:
    assert verify("gsm8k", completion, answer, {}) == reward


def test_references_that_cannot_be_judged_against() -> None:
    with pytest.raises(ValueError, match="no letter"):
        verify("choice", "Answer: B", "Paris", {})
    with pytest.raises(ValueError, match="no number"):
        verify("gsm8k", "#### 12", "twelve", {})


@pytest.mark.parametrize(
    ("form", "completion", "reward"),
    [
        ("think", "<think>2 and 2</think>4", 1),
        ("think", "\n<think>\n2 and 2\n</think>\n\n4", 1),
        ("think", "<think></think>4", 0),
        ("think", "<think>2</think> ", 0),
        ("think", "4", 0),
        ("think", "So <think>2</think>4", 0),
        ("think", "<think>2<think>2</think>4", 0),
        ("think", "<think>2</think>4</think>", 0),
        ("think", "</think><think>4", 0),
        ("think", "<think>2 and 2, 4", 0),
        ("think-answer", "<think>2</think><answer>4</answer>", 1),
        ("think-answer", "<think>2</think>\n<answer> 4 </answer>\n", 1),
        ("think-answer", "<think>2</think>4", 0),
        ("think-answer", "<think>2</think>It is <answer>4</answer>", 0),
        ("think-answer", "<think>2</think><answer>4</answer>!", 0),
        ("think-answer", "<think>2</think><answer></answer>", 0),
        ("think-answer", "<think>2</think><answer>4</answer><answer>5</answer>", 0),
        ("boxed", r"So $\boxed{4}$.", 1),
        ("boxed", r"\[\boxed{\frac{1}{2}}\]", 1),
        ("boxed", r"\boxed{4} I think", 0),
        ("boxed", r"\boxed{4} }", 0),
        ("boxed", r"\boxed{4", 0),
        ("boxed", r"\boxed{}", 0),
        ("boxed", r"\boxed{4} \boxed{", 0),
        ("boxed", "4", 0),
    ],
)
def test_format(form: str, completion: str, reward: float) -> None:
    assert verify(f"format:{form}", completion, "any", {}) == reward


def test_regex() -> None:
    assert verify(r"regex:Answer: \d+", "Answer: 12", "", {}) == 1.0
    assert verify(r"regex:Answer: \d+", "Answer: 12.", "", {}) == 0.0
    assert verify(r"regex:(?s).*:end", "a\nb:end", "", {}) == 1.0


@pytest.mark.parametrize("given", ["7_0", "7,7", "0,007", "7, 8", "7_{1}"])
def test_an_integer_is_not_read_from_a_subscript_a_list_or_leading_zeros(given):
    assert judge_math(rf"\boxed{{{given}}}", "7") == 0.0


@pytest.mark.parametrize(("given", "reference"), [("1,234", "1234"), ("12{,}345", "12345"), ("-1,000", "-1000"), ("7", "7")])
def test_thousands_are_still_read(given, reference):
    assert judge_math(rf"\boxed{{{given}}}", reference) == 1.0
