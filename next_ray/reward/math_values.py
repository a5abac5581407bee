"""Expressions in floating point at a few points: what differs there is not equal, whatever a computer algebra system could spend on it.

Only differences are concluded. Equality stays math-verify's decision.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable, Mapping
from typing import Any

TOLERANCE = 1e-3
"""Relative; math-verify compares six decimals, which 0 and 0.0000001 share."""
CANCELLED = 1e-13
"""A sum this small beside its terms is 0."""
POINTS = (0.731, 0.419, 0.877)
MAX_NODES = 2000
MAX_NATURAL = 1000


class Unknown(ArithmeticError):
    """An expression has parts that are not evaluated here."""


def _real(x: complex) -> float:
    if abs(x.imag) > CANCELLED:
        raise Unknown
    return x.real


def _natural(x: complex) -> int:
    if x.imag or x.real != int(x.real) or not 0 <= x.real <= MAX_NATURAL:
        raise Unknown
    return int(x.real)


FUNCTIONS: Mapping[str, Callable[..., complex]] = {
    "exp": cmath.exp,
    "log": cmath.log,
    "Abs": lambda x: complex(abs(x)),
    "sin": cmath.sin,
    "cos": cmath.cos,
    "tan": cmath.tan,
    "cot": lambda x: 1 / cmath.tan(x),
    "sec": lambda x: 1 / cmath.cos(x),
    "csc": lambda x: 1 / cmath.sin(x),
    "asin": cmath.asin,
    "acos": cmath.acos,
    "atan": cmath.atan,
    "sinh": cmath.sinh,
    "cosh": cmath.cosh,
    "tanh": cmath.tanh,
    "factorial": lambda x: complex(math.gamma(_real(x) + 1)),
    "binomial": lambda n, k: complex(math.comb(_natural(n), _natural(k))),
    "floor": lambda x: complex(math.floor(_real(x) + CANCELLED)),
    "ceiling": lambda x: complex(math.ceil(_real(x) - CANCELLED)),
    "UnevaluatedExpr": lambda x: x,
}


def surely_different(gold: Any, given: Any) -> bool:
    """Whether a reading of an answer has other values than the reference's, as far as math-verify compares values.

    Both are what math-verify parsed: expressions, intervals, tuples; False for anything else, and where the library compares names.
    """
    if "free_symbols" not in dir(gold) or "free_symbols" not in dir(given):
        return False
    if _is_equation(gold) and not _is_equation(given):
        gold = gold.rhs
    elif _is_equation(given) and not _is_equation(gold):
        given = given.rhs
    golds, givens = _parts(gold), _parts(given)
    if golds and len(golds) == len(givens):
        return any(surely_different(*pair) for pair in zip(golds, givens, strict=True))
    if getattr(gold, "is_Symbol", True) or getattr(given, "is_Symbol", True):
        return False
    return all(differ(*pair) for pair in {(gold, given), (_without_percent(gold), _without_percent(given))})


def contradict(side: Any, answer: Any) -> bool:
    """Whether `side = answer` is surely false: a side with names of its own is a definition."""
    if "free_symbols" not in dir(side) or "free_symbols" not in dir(answer) or not side.free_symbols <= answer.free_symbols:
        return False
    return not getattr(side, "is_Symbol", True) and differ(side, answer)


def _parts(expression: Any) -> tuple[Any, ...]:
    """Coordinates of a point, ends of an interval; the library takes `(1, 2)` for either."""
    kind = type(expression).__name__
    return tuple(expression.args) if kind == "Tuple" else tuple(expression.args[:2]) if kind == "Interval" else ()


def _is_equation(expression: Any) -> bool:
    return type(expression).__name__ == "Equality"


def _without_percent(expression: Any) -> Any:
    """`9%` as 9: math-verify takes one for the other."""
    if getattr(expression, "is_Mul", False) and len(expression.args) == 2 and type(expression.args[1]).__name__ == "UnevaluatedExpr":
        return expression.args[0]
    return expression


def differ(one: Any, other: Any) -> bool:
    """Whether `other` surely has another value than `one` at some of the points, or none or an infinite one where `one` is finite.

    False when nothing can be told, because an expression has parts that are not evaluated here.
    """
    names = sorted({symbol.name for symbol in one.free_symbols | other.free_symbols})
    try:
        for start in POINTS:
            point = _point(names, start)
            expected = value(one, point)
            if not cmath.isfinite(expected):
                return False
            if not _close(expected, other, point):
                return True
    except (ArithmeticError, ValueError, TypeError, AttributeError, RecursionError):
        return _is_infinite(other) and not _is_infinite(one)
    return False


def _close(expected: complex, other: Any, point: Mapping[str, complex]) -> bool:
    """Raises `Unknown` where the other value cannot be told."""
    try:
        found = value(other, point)
    except Unknown:
        raise
    except (ArithmeticError, ValueError):
        return False
    return cmath.isfinite(found) and abs(found - expected) <= TOLERANCE * max(abs(found), abs(expected))


def _is_infinite(expression: Any) -> bool:
    """Whether infinity or an undefined value is written in it."""
    return any(getattr(atom, "is_finite", None) is False or type(atom).__name__ == "NaN" for atom in expression.atoms())


def value(expression: Any, point: Mapping[str, complex]) -> complex:
    """The value where symbols have the values of `point`.

    Raises `Unknown` when parts are not evaluated here, another ArithmeticError or ValueError when there is none or it is too large.
    """
    return _value(expression, point, [MAX_NODES])


def _point(names: list[str], start: float) -> dict[str, complex]:
    """Positive values without simple relations, below 2."""
    return {name: complex(0.3 + (start + (i + 1) * 0.6180339887498949 * (1 + start)) % 1.5) for i, name in enumerate(names)}


def _value(expression: Any, point: Mapping[str, complex], left: list[int]) -> complex:
    left[0] -= 1
    if left[0] < 0:
        raise Unknown
    if expression.is_Symbol:
        return point[expression.name]
    if expression.is_Number or expression.is_NumberSymbol:
        return complex(float(expression))
    kind = type(expression).__name__
    if kind == "ImaginaryUnit":
        return 1j
    if kind == "ComplexInfinity":
        return complex(math.inf)
    if not (expression.is_Add or expression.is_Mul or expression.is_Pow or kind in FUNCTIONS):
        raise Unknown
    values = [_value(each, point, left) for each in expression.args]
    if expression.is_Add:
        total = sum(values)
        return total if abs(total) > CANCELLED * sum(map(abs, values)) else 0j
    if expression.is_Mul:
        return math.prod(values, start=1 + 0j)
    return values[0] ** values[1] if expression.is_Pow else FUNCTIONS[kind](*values)
