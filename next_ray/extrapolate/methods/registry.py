"""The methods by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from functools import partial
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from next_ray.errors import ConfigError
from next_ray.extrapolate.methods.alpharl import AlphaRl, Rank1
from next_ray.extrapolate.methods.linear import Expo, LinearFit, NoOp, Persistence, TwoPoint
from next_ray.extrapolate.methods.merge import SoupGreedy, SoupUniform, Wsm
from next_ray.extrapolate.methods.next import Next
from next_ray.extrapolate.methods.released import NextReleased
from next_ray.extrapolate.methods.relex import Relex
from next_ray.extrapolate.methods.sparse import Dare, KeyNeurons
from next_ray.extrapolate.plan import Extrapolator

METHODS: Mapping[str, Callable[..., Extrapolator]] = MappingProxyType(
    {
        "next": partial(Next, "both"),
        "next-no-global": partial(Next, "local"),
        "next-no-local": partial(Next, "global"),
        "next-released": NextReleased,
        "no-op": NoOp,
        "persistence": Persistence,
        "two-point": TwoPoint,
        "linear-fit": LinearFit,
        "relex": Relex,
        "alpharl": AlphaRl,
        "rank1": Rank1,
        "expo": Expo,
        "wsm-uniform": partial(Wsm, "uniform"),
        "wsm-cosine": partial(Wsm, "cosine"),
        "wsm-sqrt": partial(Wsm, "sqrt"),
        "soup-uniform": SoupUniform,
        "soup-greedy": SoupGreedy,
        "dare": Dare,
        "key-neurons": KeyNeurons,
    }
)
"""Method name to a factory that takes the method's settings."""


def make(name: str, **settings: Any) -> Extrapolator:
    """The method `name` with its settings.

    Raises:
        ConfigError: no such method (the nearest name is given), no such setting, a wrong type or a value out of range.
    """
    if name not in METHODS:
        raise ConfigError(f"There is no method {name!r}{_nearest(name, METHODS)} The methods are {', '.join(METHODS)}.")
    known, hints = settings_of(name), get_type_hints(_class_of(name))
    for key, value in settings.items():
        if key not in known:
            has = f"Its settings are {', '.join(known)}" if known else "It has no settings"
            raise ConfigError(f"{name} has no setting {key!r}{_nearest(key, known)} {has}.")
        if not _fits(value, hints[key]):
            raise ConfigError(f"{name}: {key} must be {_wording(hints[key])}, got {value!r}.")
    return METHODS[name](**settings)


def settings_of(name: str) -> dict[str, Any]:
    """A method's settings and their defaults."""
    factory = METHODS[name]
    given = len(factory.args) if isinstance(factory, partial) else 0
    return {f.name: _default(f) for f in fields(_class_of(name))[given:]}  # pyright: ignore[reportArgumentType]


def describe() -> str:
    """All methods with what they do and their settings and defaults, for --help."""
    lines: list[str] = []
    for name in METHODS:
        lines.append(f"{name}: {(inspect.getdoc(_class_of(name)) or '').partition(chr(10))[0]}")
        lines += [f"    {key}={value!r}" for key, value in settings_of(name).items()]
    return "\n".join(lines)


def _class_of(name: str) -> type:
    factory = METHODS[name]
    found = factory.func if isinstance(factory, partial) else factory
    assert isinstance(found, type)
    return found


def _default(field: Field[Any]) -> Any:
    assert field.default is not MISSING, f"setting {field.name} has no default"
    return field.default


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else "."


def _fits(value: object, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _wording(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(repr(one) for one in get_args(hint))
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_wording(one) for one in get_args(hint))
    return {NoneType: "empty", int: "a whole number", float: "a number", bool: "true or false"}.get(hint, str(hint))
