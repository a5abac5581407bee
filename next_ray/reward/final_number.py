"""The number a text ends with: how a stated numeric answer is read out of prose."""

from __future__ import annotations

import re
import unicodedata

TAIL_CHARS = 400
"""How much of the end of a text the search for a final number reads."""

FINAL_NUMBER = re.compile(r"(?<![\w.,])([+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?)$", re.ASCII)
CLOSING = " \t\r\n.!*_`$)]}\"'\\"
OPERATOR_BEFORE = re.compile(r"(?:[\d)\]}]\s*[-+*/^×÷·−]+|-|(?:\\times|\\cdot|\\div|plus|minus|times|over|by))\s*$", re.IGNORECASE)  # noqa: RUF001
ARGUMENT_BEFORE = re.compile(
    r"(?:[\^_]\s*[{(]|\}\s*\{|[A-Za-z0-9_]\(|\\(?!boxed|fbox|text|math|mbox|rm|bf)[A-Za-z]+\s*(?:\[[^\]]*\])?\s*\{)\s*$"
)
"""The number is an exponent, a subscript, a denominator or what a function is given."""
QUALIFIER_BEFORE = re.compile(
    r"(?:\b(?:or|nor|not|never|than|between)|n['’]t|[<>~≠≤≥±≈]|\\(?:neq?|leq?|geq?|lt|gt|pm|mp|neg|lnot|approx|sim))[\s$(*}]*$",  # noqa: RUF001
    re.IGNORECASE,
)
UNSEEN_OR_DASH = frozenset({"Cf", "Mn", "Me", "Pd", "Sk"})
"""Unicode categories of characters before a number that join it to something else or turn its sign."""
OPERAND_BEFORE = re.compile(r"[\d)\]}]\s*$")


def final_number(text: str) -> str | None:
    """The number a text ends with, ASCII digits only; None when it ends otherwise or with an operand of a calculation.

    Thousands separators stay, for the task to accept or refuse. `12.` and `**12**` are 12; `12%`, `1/12`, `3 + 12`, `7-12`
    and `1e12` are not stated numbers, nor is what a word or sign before it qualifies: `not 12`, `7 or 12`, `< 12`.
    """
    tail = text[-TAIL_CHARS:].replace("−", "-").rstrip(CLOSING)  # noqa: RUF001
    found = FINAL_NUMBER.search(tail)
    if found is None:
        return None
    number, before = found[1], tail[: found.start()]
    if before and unicodedata.category(before[-1]) in UNSEEN_OR_DASH:
        return None
    if (
        ARGUMENT_BEFORE.search(before)
        or OPERATOR_BEFORE.search(before)
        or QUALIFIER_BEFORE.search(before)
        or (number[0] in "+-" and OPERAND_BEFORE.search(before))
    ):
        return None
    return number
