r"""What an answer may look like before a computer algebra system reads it; decided on the text, in microseconds.

An answer is compared with the reference as text first, so nothing here keeps a reference from being right in its own words. Three things
are refused: what would cost time or memory (length, nesting, powers, factorials), what restates a question instead of answering it
(`\int`, `\sum`, `\sin`, ... where the reference has none), and what takes back or varies what it says (`\text{ or 8}`).
"""

from __future__ import annotations

import math
import re

MAX_CHARS = 300
"""An answer may be this much longer than the reference."""
MAX_REFERENCE_CHARS = 1000
"""References beyond it are compared as text only."""
MAX_DEPTH = 8
"""Brackets inside brackets, unless the reference has more."""
MAX_ITEMS = 24
"""Commas, unions and relations, unless the reference has more."""
MAX_DIGITS = 500.0
"""Decimal digits of an answer written out, from above, unless the reference has half as many."""
MAX_EXPONENT_DIGITS = 4.0
MAX_MATRIX_EXPONENT = 5
"""Beside a matrix."""
MAX_COUNTED = 1000
"""Numbers beside `!`, `\\binom`, `\\sum`, ... unless the reference has greater ones."""
MAX_DEGREE = 20
"""Numbers beside a `\\binom` of expressions, which is a polynomial."""
MAX_UNKNOWN_DEGREE = 3
MAX_RELATION_CHARS = 40
"""Of an equation or inequality, whose answer may be twice as long as the reference and this."""
MAX_PREFIXES = 4
"""Signs or functions in a row."""

ASCII = frozenset(map(chr, range(128)))
COMMAND = re.compile(r"\\(?:operatorname\*?\s*\{\s*([A-Za-z]+)\s*\}|([A-Za-z]+))")
PLAIN_COMMANDS = (
    "frac dfrac tfrac cfrac sqrt pi text textbf textit textrm textnormal mbox mathrm mathbf mathit mathbb mathcal boldsymbol rm bf "
    "displaystyle left right big Big bigl bigr Bigl Bigr cdot times div pm mp infty circ degree cup cap setminus backslash in notin mid "
    "le leq leqslant ge geq geqslant lt gt ne neq approx sim equiv to land lor begin end overline bar vec hat tilde widehat overrightarrow "
    "langle rangle lvert rvert lVert rVert vert Vert lbrace rbrace lbrack rbrack emptyset varnothing ldots dots cdots colon angle triangle "
    "quad qquad space exp prime boxed subset subseteq forall exists alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota "
    "kappa lambda mu nu xi rho sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"
)
PLAIN = frozenset(PLAIN_COMMANDS.split())
TRIGONOMETRIC = "sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc"
GROUPS = tuple(
    frozenset(names.split())
    for names in (
        "log ln lg",
        TRIGONOMETRIC,
        "sinh cosh tanh coth arsinh arcosh artanh arcsinh arccosh arctanh",
        "binom dbinom tbinom",
        "sum",
        "prod",
        "int",
        "lim",
        "gcd lcm",
        "max min",
        "lfloor rfloor floor lceil rceil ceil",
        "bmod pmod mod",
        "det trace tr rank",
    )
)
"""Commands that compute: allowed where the reference has one of the same group."""
COUNTING = re.compile(r"!|\\[Gg]amma\s*(?:\\left)?\(|\\(?:[dt]?binom|sum|prod|gcd|lcm|b?mod|pmod|det)(?![a-z])")
INTEGER_BINOMIAL = re.compile(r"\\[dt]?binom\s*(?:\{\s*\d+\s*\}|\d)\s*(?:\{\s*\d+\s*\}|\d)")
DERIVATIVE = re.compile(r"\\[dt]?frac\s*\{\s*(?:d|\\partial)[^{}]{0,40}\}\s*\{\s*(?:d|\\partial)\s*\\?[A-Za-z]|\|\s*_")
GAMMA = re.compile(r"\\[Gg]amma\s*(?:\\left\s*)?[({]")
PREFIXES = re.compile(rf"(?:(?:[-+~]|\\pm|\\mp|\\neg|\\sqrt|\\(?:{TRIGONOMETRIC.replace(' ', '|')}|log|ln))\s*){{{MAX_PREFIXES + 1}}}")
FACTORIALS = re.compile(r"(?<!\\)!")
ITEMS = re.compile(r"[,;=<>&]|\\(?:cup|cap|leq?|geq?|neq?|in|lt|gt|or|and)(?![a-z])")
NUMBER = re.compile(r"(\d+)(?:\.(\d*))?")
SCIENTIFIC = re.compile(r"(?<=[\d.])[eE]([+-]?\d+)")
SUBSCRIPT = re.compile(r"\d\s*\}?\s*_\s*\{?\s*([A-Za-z0-9]+)")
RELATION = re.compile(r"[=<>]|\\(?:leq?|geq?|lt|gt|neq?|in)(?![a-z])")
LETTER = re.compile(r"(?<!\\)[A-Za-z]")
POWER = re.compile(r"\^|\*\*")
ALTERNATIVE = re.compile(r"(?<![A-Za-z\\])(?:or|and)(?![A-Za-z])")
SEVERAL = re.compile(r"[,;]|\\(?:cup|lor|land|pm|mp)(?![a-z])")
QUALIFIER = re.compile(
    r"(?<![A-Za-z\\])(?:n?or|not|never|neither|none|no|n't|but|except|if|unless|maybe|perhaps|possibly|probably|wrong|incorrect|false|than|between"
    r"|least|most|any|every|all|hundred|thousand|million|billion|trillion|dozen|half|twice|double|percent)(?![A-Za-z])",
    re.IGNORECASE,
)
TEXT = re.compile(r"\\(?:text\w*|mbox|mathrm|mathbf|rm)\s*\{([^{}]*)\}")


def is_bounded(given: str, reference: str) -> bool:
    """Whether math-verify may read `given`: cheap to compute with, of the reference's kind, and saying one thing. Linear in the length."""
    if len(reference) > MAX_REFERENCE_CHARS or len(given) > len(reference) + MAX_CHARS:
        return False
    return not (
        _depth(given) > max(MAX_DEPTH, _depth(reference))
        or len(ITEMS.findall(given)) > max(MAX_ITEMS, 2 * len(ITEMS.findall(reference)))
        or not (given.isascii() or set(given) <= set(reference) | ASCII)
        or PREFIXES.search(given)
        or not _same_commands(given, reference)
        or not _countable(given, reference)
        or (r"\begin" in given and (r"\begin" not in reference or _greatest_exponent(given) > MAX_MATRIX_EXPONENT))
        or _digits(given) > max(MAX_DIGITS, 2 * _digits(reference))
        or (RELATION.search(reference) and not _solvable(given, reference))
        or not _same_subscripts(given, reference)
        or not _says_one_thing(given, reference)
    )


def _depth(text: str) -> int:
    deepest = depth = 0
    for character in text:
        if character in "{[(":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "}])":
            depth -= 1
    return deepest


def _commands(text: str) -> set[str]:
    """Names of commands; a doubled backslash begins a row in a matrix, and is read as a single one elsewhere."""
    return {operator or command for operator, command in COMMAND.findall(text.replace("\\\\", " ") if "matrix" in text else text)}


def _same_commands(given: str, reference: str) -> bool:
    """Nothing computes but what the reference computes with, too."""
    known = _commands(reference)
    further = _commands(given) - PLAIN - known
    allowed = {name for group in GROUPS if group & known for name in group}
    return further <= allowed and not any(form.search(given) and not form.search(reference) for form in (DERIVATIVE, GAMMA))


def _countable(given: str, reference: str) -> bool:
    """Factorials and their kin are of small numbers, and there where the reference has them."""
    if len(FACTORIALS.findall(given)) > max(2 * len(FACTORIALS.findall(reference)), 6 if "binom" in reference else 0):
        return False
    if _has_nested_factorial(given):
        return False
    if "binom" in INTEGER_BINOMIAL.sub("", given) and _greatest(given) > MAX_DEGREE:
        return False
    return not COUNTING.search(given) or _greatest(given) <= max(MAX_COUNTED, _greatest(reference))


def _has_nested_factorial(text: str) -> bool:
    """Whether the group in front of a `!` has a `!` in it."""
    for found in FACTORIALS.finditer(text):
        depth, position = 0, found.start()
        while position > 0:
            position -= 1
            depth += (text[position] in ")]}") - (text[position] in "([{")
            if text[position] == "!":
                return True
            if depth <= 0:
                break
    return False


def _greatest(text: str) -> float:
    return max((float(found[1]) if len(found[1]) < 300 else math.inf for found in NUMBER.finditer(text)), default=0.0)


def _greatest_exponent(text: str) -> float:
    return max((_greatest(exponent) for exponent in _split(text)[1]), default=0.0)


def _digits(text: str) -> float:
    """Decimal digits of a text's value from above: its factors' and summands' digits together, times the greatest of its exponents."""
    outside, exponents = _split(SCIENTIFIC.sub(r"*10^{\1}", text))
    digits = sum(_literal(found[1]) + len(found[2] or "") for found in NUMBER.finditer(outside))
    digits += 0.3 * sum(character.isalpha() for character in COMMAND.sub("A", outside))
    greatest = 1.0
    for exponent in exponents:
        size = _digits(exponent)
        if size > MAX_EXPONENT_DIGITS:
            return math.inf
        greatest = max(greatest, 10**size)
    return digits * greatest


def _literal(digits: str) -> float:
    return math.log10(max(2, int(digits))) if len(digits) < 16 else float(len(digits))


def _split(text: str) -> tuple[str, list[str]]:
    """A text without its exponents, and these; an exponent's own exponents stay in it."""
    outside, exponents, position = [], [], 0
    while found := POWER.search(text, position):
        outside.append(text[position : found.start()])
        position = _end_of_exponent(text, found.end())
        exponents.append(text[found.end() : position])
    return " ".join([*outside, text[position:]]), exponents


def _end_of_exponent(text: str, position: int) -> int:
    """Where the group, number or sign behind a `^` ends; a power directly behind it belongs to it."""
    while position < len(text) and text[position] in " -+":
        position += 1
    if position < len(text) and text[position] in "{(":
        depth = 0
        for end in range(position, len(text)):
            depth += (text[end] in "{(") - (text[end] in "})")
            if depth == 0:
                break
        position = end + 1
    elif found := NUMBER.match(text, position):
        position = found.end()
    else:
        position += 1
    behind = POWER.match(text, position)
    return _end_of_exponent(text, behind.end()) if behind else position


def _solvable(given: str, reference: str) -> bool:
    """Equations and inequalities are solved to compare them: no degree, function or root that the reference does not ask for."""
    asked, found = (" ".join(_split(text)[1]) for text in (reference, given))
    if _greatest(found) > max(MAX_UNKNOWN_DEGREE, _greatest(asked)) or (LETTER.search(found) and not LETTER.search(asked)):
        return False
    return given.count("sqrt") <= reference.count("sqrt") + 1 and len(given) <= 2 * len(reference) + MAX_RELATION_CHARS


def _same_subscripts(given: str, reference: str) -> bool:
    """The base of a number is the reference's or left out; the library reads over it."""
    return set(SUBSCRIPT.findall(given)) <= set(SUBSCRIPT.findall(reference))


def _says_one_thing(given: str, reference: str) -> bool:
    """No word that takes back, varies or scales what is said; `or` and `and` between the values of a list are fine."""
    asked = {word.lower() for word in QUALIFIER.findall(reference)}
    found = {word.lower() for word in QUALIFIER.findall(given)} - asked
    if found - {"or"} or (ALTERNATIVE.search(given) and not (ALTERNATIVE.search(reference) or SEVERAL.search(reference))):
        return False
    digits_in_words = any(any(character.isdigit() for character in words) for words in TEXT.findall(given) if not _is_number(words))
    return not digits_in_words or any(any(c.isdigit() for c in words) for words in TEXT.findall(reference))


def _is_number(text: str) -> bool:
    return NUMBER.fullmatch(text.strip().lstrip("+-")) is not None
