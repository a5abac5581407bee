r"""Answers stated in a given form: GSM8K's number, the letter of a multiple-choice question, and formats themselves.

Where several answers are stated the last counts, and nothing but an answer that is stated: prose is not searched for numbers or letters.
"""

from __future__ import annotations

import re
from collections import deque

from next_ray.data.boxed import last_boxed
from next_ray.reward.math_answers import ANSWER_LINE, clean, explicit_answer

MARK = "####"
MAX_CHARS = 200
"""Longer statements are no number and no letter."""

NUMBER = re.compile(r"\\?\$?\s*([+-]?)((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+))(?:\.([0-9]+))?\s*\\?%?")
MAX_NUMBER_CHARS = 2000
DECIMAL_COMMA = re.compile(r"(?<![0-9])0[0-9]*(?:,|\{,\})")
WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
LETTER = re.compile(r"\(?\s*([A-Za-z])\s*[).:]?")
STATEMENT = re.compile(r"\bthe[ \t]+(?:final[ \t]+|correct[ \t]+|right[ \t]+|best[ \t]+)?answer[ \t]+is\b(?!['’])[ \t]*:?", re.IGNORECASE)  # noqa: RUF001
BEFORE_STATEMENT = re.compile(r"(?:^|[.!?:;,*>]|\b(?:so|thus|hence|therefore|then|and))[ \t,:*_]*$", re.IGNORECASE)
TRAILING = re.compile(r"(?:[\s.$]|\\[)\]])+$")
MAX_TRAILING = 40
"""Characters behind a box in which math delimiters and a full stop are looked for."""
EDGES = "*_`$#> \t"


def judge_gsm8k(completion: str, answer: str) -> float:
    r"""1.0 when the number after the last `####`, else in the last box, else in the last `Answer:` line, equals the reference's.

    Thousands separators, a currency or percent sign, leading zeros and zeros behind the point make no difference. The reference may
    be a worked solution that ends in `#### 72`. Raises ValueError when the reference holds no number.
    """
    reference = _number(answer.rpartition(MARK)[2])
    if reference is None:
        raise ValueError(f"the reference {answer[:80]!r} is no number")
    stated = completion.rpartition(MARK)[2].partition("\n")[0] if MARK in completion else explicit_answer(completion)
    return float(stated is not None and _number(stated) == reference)


def _number(text: str) -> str | None:
    """The number as canonical text, so that any number of digits can be compared; None when it isn't one number alone."""
    if len(text) > MAX_NUMBER_CHARS or DECIMAL_COMMA.search(text):
        return None
    found = NUMBER.fullmatch(clean(text.strip().strip(EDGES.replace("$", ""))).strip(EDGES))
    if found is None:
        return None
    whole, part = found[2].replace(",", "").lstrip("0") or "0", (found[3] or "").rstrip("0")
    sign = "-" if found[1] == "-" and (whole, part) != ("0", "") else ""
    return f"{sign}{whole}.{part}"


def judge_choice(completion: str, answer: str) -> float:
    """1.0 when the one letter that is stated is the reference's. Raises ValueError when the reference is no letter."""
    reference = _letter(answer)
    if reference is None:
        raise ValueError(f"the reference {answer[:80]!r} is no letter")
    return float(stated_letter(completion) == reference)


def stated_letter(completion: str) -> str | None:
    r"""The capital letter of the last `\boxed{B}`; without any box of the last line `Answer: B` or `... the answer is (B).`

    The statement must end its line, and stand at its start, behind punctuation or behind a word such as "so" or "therefore".
    """
    if "\\boxed" in completion:
        return _letter(last_boxed(completion) or "")
    for line in reversed(completion.splitlines()):
        if "answer" not in line.lower():
            continue
        found = ANSWER_LINE.match(line)
        if found:
            return _letter(found[1])
        said = next(iter(deque(STATEMENT.finditer(line), maxlen=1)), None)
        if said and BEFORE_STATEMENT.search(line[max(0, said.start() - 20) : said.start()]):
            return _letter(line[said.end() :])
    return None


def _letter(text: str) -> str | None:
    if len(text) > MAX_CHARS:
        return None
    bare = WRAPPED.sub(r"\1", text.strip().strip(EDGES)).strip(EDGES + ".!")
    if bare.startswith("\\(") and bare.endswith("\\)"):
        bare = bare[2:-2].strip()
    found = LETTER.fullmatch(bare)
    return found[1].upper() if found else None


def judge_format(form: str, completion: str) -> float:
    r"""1.0 when the completion has the form, whatever its answer says.

    `think`: one `<think>...</think>` at the start with something in it, and something behind it. `think-answer`: the same, and what
    is behind it is one `<answer>...</answer>`. `boxed`: the last thing is a closed `\boxed{...}` with something in it; only a full stop
    and closing math delimiters may follow.
    """
    if form == "boxed":
        return float(_ends_with_box(completion))
    inside, rest = _between(completion, "think")
    if not inside or not rest:
        return 0.0
    if form == "think":
        return 1.0
    answer, after = _between(rest, "answer")
    return float(bool(answer) and after == "")


def _ends_with_box(text: str) -> bool:
    closing = TRAILING.search(text[-MAX_TRAILING:])
    text = text[: len(text) - len(closing[0])] if closing else text
    return text.endswith("}") and bool(last_boxed(text)) and last_boxed(text[:-1]) is None


def _between(text: str, tag: str) -> tuple[str, str | None]:
    """Stripped content of the one element the text starts with, and what follows; None for the latter when that isn't its shape."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    text = text.strip()
    if not text.startswith(opening) or text.count(opening) != 1 or text.count(closing) != 1:
        return "", None
    inside, _, rest = text[len(opening) :].partition(closing)
    return inside.strip(), rest.strip()
