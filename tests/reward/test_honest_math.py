"""Answers as people and models write them: none is lost to what keeps hostile ones out."""

from __future__ import annotations

import pytest

from next_ray.reward.math_answers import clean, judge_math
from next_ray.reward.math_bounds import is_bounded

REFERENCES = [
    *(
        "0",
        "7",
        "-3",
        "204",
        "033",
        "1234567",
        "3.5",
        ".25",
        "-0.125",
        "1,000,000",
        r"\$18.90",
        r"50\%",
        r"30^\circ",
        r"6.02 \times 10^{23}",
        "4.5e33",
    ),
    *(r"\frac{14}{3}", r"-\frac{2}{3}", r"\frac43", r"\dfrac{9}{256}", "3/4", r"2\frac{1}{2}", r"\frac{1}{2^{98}}", r"\frac{3}{56}"),
    *(
        r"3\sqrt{13}",
        r"\sqrt{51}",
        r"1 \pm \sqrt{19}",
        r"\frac{3\sqrt{3}}{4}",
        r"\frac{-1 + \sqrt{5}}{2}",
        r"\sqrt[3]{4}",
        r"2 + 2\sqrt{2}",
    ),
    *(
        r"\pi",
        r"\frac{\pi}{2}",
        r"12\pi",
        r"\frac{2\pi}{3} - \frac{\sqrt{3}}{2}",
        r"36\pi - 18\sqrt{3}",
        "e",
        "e^2",
        r"e^{-\pi/2}",
        r"\ln 2",
        r"\log_2 3",
    ),
    *(
        "3 + 4i",
        "-i",
        r"6 - 5i",
        r"\frac{1}{5} - \frac{2}{5}i",
        "1,-2",
        "1, 2, 3",
        r"\frac{1}{3}, 2",
        "(3, -2)",
        r"\left( 3, \frac{\pi}{2} \right)",
    ),
    *(
        "(1,8,19)",
        r"\left(\frac{3}{5},\frac{8}{3},-1\right)",
        r"\{1, 2, 3\}",
        r"\{-1\pm\sqrt{5},-2\}",
        "[-2,7]",
        r"(-\infty, -2] \cup [3, \infty)",
    ),
    *(r"(0,9) \cup (9,36)", r"[\frac{\pi^2}{8},\frac{5 \pi^2}{4}]", r"\left[ 0, 1 \right)", r"(-\infty,2)\cup(3,\infty)"),
    *(
        "p - q",
        "x^3+3x-6",
        "6r^2-4r-24",
        "4x^2+16x+19",
        r"\frac{n(n+1)}{2}",
        r"2k+2",
        r"\frac{x}{x+1}",
        "ab + bc + ca",
        r"\frac{1}{4}e^{2 t}",
        r"(x-2)^2(x+1)",
    ),
    *(
        "x^5 - x^4 + x^3 - x^2 + x - 1",
        r"\frac{1}{2} n^2 + \frac{1}{2} n + 1",
        r"e^{-x^2}",
        r"\sin x + \cos y",
        r"\tan^{-1} x",
        r"2^{n-1}",
        r"2^{1009}",
        r"3^{2023} - 1",
    ),
    *(
        r"\frac{2^{2009} - 1}{3}",
        "2^{2^{10}}",
        "10!",
        r"\binom{10}{3}",
        r"\binom{2023}{1011}",
        r"n! - 1",
        r"\frac{2n!}{n+1}",
        r"\sum_{k=1}^{n} \frac{1}{k}",
    ),
    *("y = 2x + 1", "x=5", "x^2 + y^2 = 25", r"y = -\frac{1}{2} x + 3", "x > 5", r"x \le -2", r"-2 < x < 3", r"f(x) = x^2", r"a \ne 0"),
    *(
        r"\begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix}",
        r"\begin{pmatrix} a & b \\ c & d \end{pmatrix}",
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
    ),
    *(
        "2516_8",
        "10101_2",
        "(B)",
        r"\text{(C)}",
        r"\text{Evelyn}",
        r"\text{even}",
        r"\text{June 20}",
        r"\text{Navin}",
        "No solution",
        r"\emptyset",
        r"\infty",
    ),
    *(
        r"12 \text{ cm}",
        r"10 \text{ cm}^2",
        r"98 \text{ dollars}",
        r"5.4 \text{ cents}",
        r"\frac{3}{4} \text{ hours}",
        "72 degrees",
        r"15\text{ mph}",
    ),
    *(
        r"1.6 \times 10^{-19}",
        "6e13",
        "2.19e6",
        r"3 \cdot 10^8",
        "-1.5e-3",
        r"\arcsin{1.3 \sin{\theta_w}}",
        r"\sqrt{\frac{2 E}{m}}",
        r"\frac{m g}{k} (1 - e^{-k t})",
    ),
]
"""Of the kinds that AIME, AMC, DAPO-Math, MATH-500, Minerva and OlymMATH have."""


@pytest.mark.parametrize("reference", REFERENCES)
def test_every_kind_of_reference_is_right_in_its_own_words_and_may_be_computed_with(reference: str) -> None:
    assert judge_math(rf"\boxed{{{reference}}}", reference) == 1.0
    assert judge_math(f"Answer: ${reference}$", reference) == 1.0
    assert is_bounded(clean(reference), clean(reference))


UNREADABLE = ("p - q", "June 20", "No solution", r"a \ne 0", "even", "Navin", "Evelyn")


@pytest.mark.parametrize("reference", [each for each in REFERENCES if not any(text in each for text in UNREADABLE)])
def test_every_kind_of_reference_is_recognized_by_its_value(reference: str) -> None:
    assert judge_math(rf"\boxed{{\displaystyle {reference}}}", reference) == 1.0
