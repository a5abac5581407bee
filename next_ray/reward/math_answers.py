r"""Mathematical answers: what was given as the answer, and whether math-verify finds it equal to the reference.

Only an explicit answer counts: the last `\boxed{...}`, else the last line `Answer: ...`. Numbers in prose are not searched,
and earlier boxes are not part of the answer.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from next_ray.data.boxed import last_boxed
from next_ray.reward.math_bounds import is_bounded
from next_ray.reward.math_values import contradict, surely_different

MAX_ANSWER_CHARS = 2000
"""Longer answers are wrong unread, unless the reference is that long itself."""

ANSWER_LINE = re.compile(r"[ \t*_#>`-]*(?:the[ \t]+)?(?:final[ \t]+)?answer[ \t*_]*:(.*)", re.IGNORECASE | re.DOTALL)
TEXT_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mathbf|operatorname)\s*\{([^{}]*)\}")
SIGNS = str.maketrans(
    {"×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ", "−": "-", "±": r"\pm ", "√": r"\sqrt ", "°": r"^\circ "}  # noqa: RUF001
    | {"π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in "}  # noqa: RUF001
)
"""What people write instead of commands."""
SPACING = re.compile(r"(?<!\\)\\[,!;: ]|~")
THOUSANDS = re.compile(r"(?<![\d.,])([+-]?[1-9]\d{0,2}(?:(?:,|\{,\})\d{3})+)(?![\d,])")
INTEGER = re.compile(r"[+-]?[0-9]+")
NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)")
WORDS = re.compile(r"[A-Za-z][A-Za-z' -]{3,}")
LAST_EQUALITY = re.compile(r"(?<![<>!:\\])=")
SCIENTIFIC = re.compile(r"(?:\\times|\\cdot|\*)\s*(?=10\s*\^)")
UNEVALUATED = re.compile(
    r"[\d)}\]]\s*(?:\+|-|\*|\\times|\\cdot|\\div|\\pm|!|\(|\\left|:\s*\d)|[)\]]\s*\d"
    r"|(?<!10)(?<!10 )\^(?!\s*\{?\s*\\circ)"
    r"|\||\\(?:sqrt|exp|lfloor|lceil|[lr]?[vV]ert)(?![a-z])"
)
NAME = re.compile(r"[A-Za-z]{1,3}(?:_\{?\w{1,3}\}?)?(?:\([a-z]\))?")
MAX_SIDES = 4
"""Sides of an equation that are looked at, from its end."""
UNIT = re.compile(
    r"\\(?:text\w*|mbox|mathrm)\s*\{[^{}]*\}\s*(?:\^\s*\{?\s*-?[0-9]\s*\}?)?\s*$|(?<=\d)\^\s*\{?\s*(?:\\text\{)?(?:st|nd|rd|th)\}*$"
)
PERCENT = re.compile(r"\s*\\?%\s*$")
FRACTION = r"\\[dt]?frac\s*(?:\{\s*[0-9]+\s*\}|[0-9])\s*(?:\{\s*[0-9]+\s*\}|[0-9])"
POWER_OF_TEN = r"(?:\s*\\(?:times|cdot)\s*10\s*\^\s*\{?\s*-?[0-9]+\s*\}?)?"
RATIONAL = re.compile(rf"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+){POWER_OF_TEN}|[0-9]*\s*{FRACTION}|[0-9]+\s*/\s*[0-9]+)")
"""Numbers and fractions of integers."""
E_NOTATION = re.compile(r"(?<![A-Za-z_{^])([0-9]\.?|\.[0-9])[eE]([+-]?[0-9]{1,4})(?![0-9A-Za-z_.^])")
DIVISION = re.compile(r"\\[dt]?frac|\d\s*/\s*\d")


def judge_math(completion: str, answer: str) -> float:
    """1.0 when the completion's explicit answer equals the reference, else 0.0. Must run in a process' main thread.

    What is not the reference's text is read by math-verify only if it is cheap to read and compute with (`math_bounds`), and can be right
    only where the values agree, too (`math_values`). Raises ValueError when the reference is blank.
    """
    boxed = last_boxed(answer)
    reference = clean(answer if boxed is None else boxed)
    if not _words(reference):
        raise ValueError("the reference is blank")
    given = explicit_answer(completion)
    if given is None or len(given) > max(MAX_ANSWER_CHARS, 2 * len(answer)):
        return 0.0
    given = clean(given)
    if not given:
        return 0.0
    if INTEGER.fullmatch(reference) and INTEGER.fullmatch(given):
        return float(_canonical(reference) == _canonical(given))
    if _words(reference) == _words(given):
        return 1.0
    if WORDS.fullmatch(_words(reference)):
        return 0.0  # sympy would read a word as the product of its letters, and any anagram as equal
    if "=" not in reference:
        given, before = _sides(given)
        if not all(_agrees(side, given) for side in before if is_bounded(side, reference)):
            return 0.0
    given, reference = (E_NOTATION.sub(r"\1 \\times 10^{\2}", text) for text in (given, reference))
    if not is_bounded(given, reference):
        return 0.0
    if RATIONAL.fullmatch(reference):
        whole = bool(INTEGER.fullmatch(reference))
        if "_" in given or (whole and "," in given) or _restates(given, whole):
            return 0.0  # subscripts are read over, and a list of equal guesses as one
        given = PERCENT.sub("", given) if whole or _is_above_one(reference) else given
    return float(_equal(reference, given))


def _is_above_one(reference: str) -> bool:
    return bool(NUMBER.fullmatch(reference)) and abs(float(reference)) > 1.0


def _sides(given: str) -> tuple[str, list[str]]:
    """The last side of `x = 3 + 4 = 7`, which is the answer, and the others; a list of equations is one answer."""
    if "," in given or ";" in given:
        return given, []
    *before, last = [side.strip() for side in LAST_EQUALITY.split(given)]
    return last, before[-MAX_SIDES:]


def _agrees(side: str, answer: str) -> bool:
    """Whether a side of an equation is a name for the answer or may equal it: `3 + 5 = 7` does not state 7."""
    if NAME.fullmatch(side) or not is_bounded(answer, side):
        return True
    left, right = _parse(side), _parse(answer)
    return not (left and right and contradict(left[0], right[0]))


def explicit_answer(completion: str) -> str | None:
    r"""The last `\boxed{}`'s content; without any box the rest of the last line that starts with `Answer:`."""
    if "\\boxed" in completion:
        return last_boxed(completion)
    for line in reversed(completion.splitlines()):
        found = ANSWER_LINE.match(line)
        if found:
            return found[1].strip().strip("*_` ")
    return None


def clean(text: str) -> str:
    """Without math delimiters, spacing commands, thousands separators and the full stop."""
    text = SPACING.sub("", text.strip().translate(SIGNS)).strip("$ \t\n").removesuffix(".").strip("$ \t\n")
    for opening, closing in (("\\(", "\\)"), ("\\[", "\\]")):
        if text.startswith(opening) and text.endswith(closing):
            text = text[len(opening) : -len(closing)].strip()
    return THOUSANDS.sub(lambda found: re.sub(r"[{},]", "", found[1]), text)


def _canonical(integer: str) -> str:
    """Sign and digits without leading zeros; a comparison of text needs no limit on the number of digits."""
    digits = integer.lstrip("+-").lstrip("0") or "0"
    return f"-{digits}" if integer.startswith("-") and digits != "0" else digits


def _words(text: str) -> str:
    """Lower-case text of answers such as `(B)` or `\\text{Tuesday}`."""
    text = TEXT_COMMAND.sub(r"\1", text).strip()
    if text.startswith("(") and text.endswith(")") and text[1:-1].isalpha():
        text = text[1:-1]
    return " ".join(text.lower().split())


def _restates(given: str, whole: bool) -> bool:
    """Whether a number is asked for and an expression is given: `12 \\times 13` repeats the question, it does not answer it.

    Powers of ten are numbers; fractions are, unless the reference is an integer.
    """
    given = SCIENTIFIC.sub("e", UNIT.sub("", given))
    return bool(UNEVALUATED.search(given) or (whole and DIVISION.search(given)))


def _equal(reference: str, given: str) -> bool:
    from math_verify import verify

    golds, readings = _parse_reference(reference), _parse(given)
    if not golds or not readings or surely_different(golds[0], readings[0]):
        return False
    return bool(verify(golds, readings, timeout_seconds=None))


@lru_cache(maxsize=1024)
def _parse_reference(text: str) -> Any:
    return _parse(text)


def _parse(text: str) -> Any:
    """math-verify's reading of one expression; its own time limit is off, because the parent's clock can stop anything."""
    from math_verify import LatexExtractionConfig, parse

    return parse(f"${text}$", extraction_config=[LatexExtractionConfig(boxed_match_priority=-1)], parsing_timeout=None)  # type: ignore[arg-type]
