"""What is wrong with a configuration, in words: which key, where it was set, what was expected, what may have been meant."""

from __future__ import annotations

import difflib
import json
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from next_ray.config.section import CredentialsError

MAX_PROBLEMS = 20
"""How many problems are told; a file of something else has thousands."""

KeyPath = tuple[str, ...]
"""A key of the tree; items of a list are `[n]`."""


@dataclass
class Draft:
    """The tree under construction, what it is to become, where each key came from, and what is wrong so far."""

    schema: type[BaseModel]
    tree: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def origin(self, key: KeyPath) -> str:
        """The place of `key` or of its nearest parent, as `, place`; empty when it is a default."""
        while key and key not in self.origins:
            key = key[:-1]
        return f" ({self.origins[key]})" if key else ""


def describe(error: ValidationError, draft: Draft) -> list[str]:
    """One sentence per key; the branches of a union that all failed become alternatives of one sentence."""
    sentences: dict[KeyPath, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        sentences.setdefault(_key_of(detail, draft.tree), []).append(detail)
    told = [_sentence(key, details, draft) for key, details in islice(sentences.items(), MAX_PROBLEMS)]
    return told + [f"{name} is not valid either" for name in map(dotted, islice(sentences, MAX_PROBLEMS, None))]


def _key_of(detail: ErrorDetails, tree: Any) -> KeyPath:
    """The key in the user's tree (`[n]` for items of a list): pydantic's location without the union tags it puts between."""
    key: list[str] = []
    value = tree
    for position, part in enumerate(detail["loc"]):
        if isinstance(part, int):
            if not isinstance(value, list) or not part < len(value):
                return tuple(key)
            key.append(f"[{part}]")
            value = value[part]
        elif isinstance(value, dict) and part in value:
            key.append(part)
            value = value[part]
        elif detail["type"] == "missing" and position == len(detail["loc"]) - 1:
            key.append(part)
    return tuple(key)


def _sentence(key: KeyPath, details: Sequence[ErrorDetails], draft: Draft) -> str:
    first = details[0]
    name, origin = dotted(key), draft.origin(key)
    if isinstance(error := first.get("ctx", {}).get("error"), CredentialsError):
        return f"{name} {error}"  # the override itself is not shown: it holds them
    match first["type"]:
        case "extra_forbidden":
            return f"unknown key {name}{origin}{_suggest(key, draft)}"
        case "missing" if isinstance(first["loc"][-1], str):
            return f"{name} is required and not given{origin}"
        case "union_tag_not_found":
            return f"{name}.kind is required and not given{origin}; expected one of {_kinds(key, draft.schema)}"
        case "union_tag_invalid":
            context = first.get("ctx", {})
            return f"{name}.kind={context.get('tag')!r}{draft.origin((*key, 'kind'))}: expected one of {_kinds(key, draft.schema)}"
        case "value_error":
            return f"{first['msg'].removeprefix('Value error, ').rstrip('.')}{origin}"
    expected = " or ".join(dict.fromkeys(_expected(detail) for detail in details))
    value = _lookup(draft.tree, key)
    hint = "; put it in quotes to make it text" if first["type"] == "string_type" and isinstance(value, bool | int | float) else ""
    return f"{name}={show(value)}{origin}: expected {expected}{hint}"


def _expected(detail: ErrorDetails) -> str:
    message = detail["msg"]
    if detail["type"] == "missing":
        return f"at least {int(detail['loc'][-1]) + 1} values"
    for start in ("Input should be ", "Input should ", "String should ", "List should "):
        if message.startswith(start):
            return message.removeprefix(start)
    return message


def _kinds(key: KeyPath, schema: type[BaseModel]) -> str:
    """The kinds of the tagged union at `key`, as a list in words."""
    sections: list[type[BaseModel]] = [schema]
    for part in _without_indices(key):
        sections = [
            inner for section in sections if part in section.model_fields for inner in _sections(section.model_fields[part].annotation)
        ]
    return ", ".join(repr(section.model_fields["kind"].default) for section in sections)


def _lookup(tree: Any, key: KeyPath) -> Any:
    for part in key:
        tree = tree[int(part[1:-1])] if isinstance(tree, list) else tree[part]
    return tree


def dotted(key: KeyPath) -> str:
    """`section.key`, `section.list[2].key`."""
    return ".".join(key).replace(".[", "[")


def _without_indices(key: KeyPath) -> KeyPath:
    return tuple(part for part in key if not part.startswith("["))


def show(value: Any) -> str:
    """A value as YAML would write it on one line, cut to a readable length."""
    text = "null" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _suggest(key: KeyPath, draft: Draft) -> str:
    """The nearest valid names: a sibling spelled alike, or a key of the same or a similar name elsewhere."""
    key = _without_indices(key)
    valid = [path for path in _key_paths(draft.schema, draft.tree) if path != key[: len(path)]]
    siblings = {path[-1]: path for path in valid if path[:-1] == key[:-1]}
    close = [siblings[name] for name in difflib.get_close_matches(key[-1], siblings, n=1, cutoff=0.6)]
    same_leaf = [path for path in valid if path[-1] == key[-1]]
    found = list(dict.fromkeys(close + same_leaf))[:3]
    if not found:
        by_name = {".".join(path): path for path in valid}
        found = [by_name[name] for name in difflib.get_close_matches(".".join(key), by_name, n=1, cutoff=0.7)]
    if not found:
        return f"; valid here: {', '.join(sorted(siblings))}" if siblings else ""
    return f"; did you mean {' or '.join('.'.join(path) for path in found)}?"


def _key_paths(model: type[BaseModel], tree: Any, prefix: KeyPath = ()) -> Iterator[KeyPath]:
    """All valid key paths; of a union with a `kind`, those of the kind the tree names (all kinds when it names none)."""
    for name, info in model.model_fields.items():
        path = (*prefix, name)
        yield path
        given = tree.get(name) if isinstance(tree, dict) else None
        sections = list(_sections(info.annotation))
        kind = given.get("kind") if isinstance(given, dict) else None
        named = [section for section in sections if (f := section.model_fields.get("kind")) is not None and f.default == kind]
        for section in named or sections:
            yield from _key_paths(section, given, path)


def keys(schema: type[BaseModel]) -> list[str]:
    """Every key that can be set, dotted, those that are sections left out; of a union with a `kind`, those of all kinds."""
    paths = dict.fromkeys(_key_paths(schema, {}))
    inner = {path[:-1] for path in paths}
    return [dotted(path) for path in paths if path not in inner]


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated, tuple):
        for part in typing.get_args(annotation):
            yield from _sections(part)


def paragraph(path: str | None, problems: Sequence[str]) -> str:
    """All problems (of many the first ones) of the configuration in file `path` (None: of overrides alone)."""
    subject = f"The configuration {path}" if path else "The configuration"
    problems = [problem if len(problem) <= 1000 else f"{problem[:1000]}..." for problem in problems]
    if len(problems) == 1:
        return f"{subject} is not valid: {problems[0]}{'' if problems[0].endswith('?') else '.'}"
    told = "; ".join(f"({i}) {problem}" for i, problem in enumerate(problems[:MAX_PROBLEMS], start=1))
    return f"{subject} has {len(problems)} problems: {told}{'; and so on' if len(problems) > MAX_PROBLEMS else ''}."
