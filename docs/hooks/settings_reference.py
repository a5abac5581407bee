"""The pages of settings, made from the sections of `next_ray.config`: key, type, limits, default and description of each."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

OF_A_RUN = """A job is one YAML file of these sections; what it leaves out has its default. On the command line `section.key=value`
overrides it ([running](../running.md#settings)). This page is made from `next_ray/config/`, where combinations are checked, too.
"""
OF_A_WARM_START = """The settings of `python -m next_ray.warmstart` ([warm start](../warmstart.md)), written and overridden like those of
a run. This page is made from `next_ray/config/warmstart.py`.
"""
PLAIN = {int: "whole number", float: "number", bool: "true or false", str: "text", Any: "anything", type(None): "null"}
LIMITS = {"ge": "at least {}", "gt": "more than {}", "le": "at most {}", "lt": "less than {}", "min_length": "at least {} long"}


@dataclass(frozen=True)
class Part:
    """One heading of the page: the keys of a section."""

    title: str
    prefix: str
    section: type[BaseModel]
    depth: int


def page(root: type[BaseModel], title: str, introduction: str) -> str:
    """The page of a whole tree, as Markdown."""
    own = [name for name, field in root.model_fields.items() if not _is_section(field.annotation)]
    blocks, seen = [f"# {title}", introduction], set()
    if own:
        blocks += ["## Top level", *_keys(root, "", own)]
    for name, field in root.model_fields.items():
        if _is_section(field.annotation):
            for part in _parts(Part(f"`{name}`", f"{name}.", field.annotation, 2), seen):
                blocks += [f"{'#' * part.depth} {part.title}", part.section.__doc__ or ""]
                names = [key for key, value in part.section.model_fields.items() if not _is_section(value.annotation)]
                blocks += _keys(part.section, part.prefix, names)
    return "\n\n".join(block.strip() for block in blocks) + "\n"


def _parts(part: Part, seen: set[type[BaseModel]]) -> Iterator[Part]:
    """The section itself, then the sections within it, and the entries of its lists and choices, each class once."""
    seen.add(part.section)
    yield part
    for name, field in part.section.model_fields.items():
        place = f"{part.prefix}{name}"
        for inner in _models(field.annotation):
            if inner in seen:
                continue
            kind = inner.model_fields.get("kind")
            if _is_section(field.annotation):
                named, prefix = "", f"{place}."
            elif kind:
                named, prefix = f" with `kind: {kind.default}`", f"{place}.{kind.default}."
            else:
                named, prefix = f": {_words(inner.__name__)}", f"{place}.{_words(inner.__name__).replace(' ', '-')}."
            yield from _parts(Part(f"`{place}`{named}", prefix, inner, 3), seen)


def _keys(section: type[BaseModel], prefix: str, names: list[str]) -> list[str]:
    """A definition list; every key is an anchor, `run.steps` of #run.steps."""
    entries = []
    for name in names:
        field = section.model_fields[name]
        words = "; ".join([_type(field.annotation), *_limits(field), _default(field)])
        text = "\n\n    ".join(" ".join(block.split()) for block in (field.description or "Which of the kinds this is.").split("\n\n"))
        entries.append(f"[`{name}`](#{prefix}{name}){{ #{prefix}{name} }} {words}\n:   {text}")
    return ['<div class="settings" markdown>', *entries, "</div>"] if entries else []


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True) if not field.is_required() else PydanticUndefined
    if value is PydanticUndefined:
        return "**required**"
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return f"default `{json.dumps(value, ensure_ascii=False)}`"


def _limits(field: FieldInfo) -> list[str]:
    found = [words.format(f"{getattr(m, name):g}") for m in field.metadata for name, words in LIMITS.items() if hasattr(m, name)]
    return found + [f"matches `{m.pattern}`" for m in field.metadata if getattr(m, "pattern", None)]


def _type(annotation: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation in PLAIN:
        return PLAIN[annotation]
    if origin is Annotated:
        return _type(inner[0])
    if origin is Literal:
        return " or ".join(f"`{json.dumps(value)}`" for value in inner).replace('"', "")
    if origin in (Union, types.UnionType):
        return " or ".join(_type(one) for one in inner)
    if origin is list:
        return f"list of {_type(inner[0])}"
    if origin is tuple:
        return f"list of {_type(inner[0])}" if inner[-1] is Ellipsis else f"list of {len(inner)}: {', '.join(_type(one) for one in inner)}"
    if origin is dict:
        return f"mapping of {_type(inner[0])} to {_type(inner[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        kind = annotation.model_fields.get("kind")
        return f"`{{kind: {kind.default}, ...}}`" if kind else f"`{{{', '.join(annotation.model_fields)}}}`"
    raise TypeError(f"{annotation!r} has no words in {__name__}: give it some")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that an annotation mentions."""
    if _is_section(annotation):
        yield annotation
    for inner in get_args(annotation):
        if not isinstance(inner, str):
            yield from _models(inner)


def _is_section(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _words(name: str) -> str:
    """`FewShotFile` as "few shot file"."""
    return "".join(f" {char.lower()}" if char.isupper() else char for char in name).strip()
