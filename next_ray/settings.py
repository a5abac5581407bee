"""From a YAML file and `key=value` overrides to a `Config` (or another tree of sections), with every problem named at once.

Level 1: pydantic and PyYAML only. What is valid is said in `next_ray.config`; this module finds the place of a problem
(file and line, or override) and the nearest valid key.
"""

from __future__ import annotations

import difflib
import json
import math
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from next_ray.config import ArithmeticSource, Config
from next_ray.config.section import CredentialsError
from next_ray.errors import ConfigError
from next_ray.yaml_core import MAX_DEPTH, Dumper, Loader

EXTENDS = "extends"
"""Key of a file that names another one, whose settings hold where the file itself says nothing."""

MAX_FILE_BYTES = 2**20
MAX_PROBLEMS = 20
"""How many problems are told; a file of something else has thousands."""

KeyPath = tuple[str, ...]
Tree = TypeVar("Tree", bound=BaseModel)


def load_config(path: str | None, overrides: Sequence[str] = ()) -> Config:
    """A run's configuration; see `load_as`."""
    return load_as(Config, path, overrides)


def load_as(schema: type[Tree], path: str | None, overrides: Sequence[str] = ()) -> Tree:
    """Read `path` (None: the defaults), apply `key.sub=value` overrides (values are YAML) and validate as `schema`.

    A file may begin with `extends: other.yaml` (relative to itself) and say only what differs: sections are merged key by key, lists
    and sections of another `kind` replaced whole.

    Raises `ConfigError`: one paragraph with every problem, its key, value, what was expected and the file's line.
    """
    draft = _Draft(schema)
    if path is not None:
        _read_file(path, draft)
    for override in overrides:
        _apply_override(override, draft)
    _default_source_kind(draft.tree)
    text = json.dumps(draft.tree)
    draft.tree = json.loads(text)  # keys that are not text become text, so that all look-ups agree
    try:
        # Strict: no "3" for 3 and no true for 1. JSON, because only there a list is a tuple under strict rules.
        config = schema.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise ConfigError(_paragraph(path, [*draft.problems, *_describe(error, draft)])) from error
    if draft.problems:
        raise ConfigError(_paragraph(path, draft.problems))
    return config


def to_yaml(config: BaseModel) -> str:
    """The whole resolved tree as YAML that `load_as` reads back to an equal one."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)


@dataclass
class _Draft:
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


def _read_file(path: str, draft: _Draft) -> None:
    """The file's tree, laid over the one of the file that its `extends` names, and so on."""
    trees: list[dict[str, Any]] = []
    origins: list[dict[KeyPath, str]] = []
    chain: list[Path] = []
    place: Path | None = Path(path)
    while place is not None:
        if "\0" in str(place):
            raise ConfigError(f"{str(place)[:100]!r} is no path of a file. Give the path of a YAML file.")
        if place.resolve() in [earlier.resolve() for earlier in chain]:
            raise ConfigError(f"{path}: extends goes round in a circle, {' -> '.join(map(str, [*chain, place]))}. Break it.")
        text = _text_of(place, by=chain[-1] if chain else None)
        chain.append(place)
        draft.origins = {}
        tree = _parse(text, str(place), draft, as_mapping=True)
        is_last = EXTENDS not in tree
        parent = tree.pop(EXTENDS, None)
        if not is_last and not (isinstance(parent, str) and parent.strip()):
            where = draft.origin((EXTENDS,))
            raise ConfigError(f"{EXTENDS}={_show(parent)}{where}: expected the path of one YAML file, beside or relative to this one.")
        trees.append(tree)
        origins.append(draft.origins)
        place = None if is_last else place.parent / _expanded(parent)
    draft.origins = {}
    for tree, places in zip(reversed(trees), reversed(origins), strict=True):
        draft.tree = _merged(draft.tree, tree)
        draft.origins |= places


def _text_of(place: Path, by: Path | None) -> str:
    extended = f", which {by} extends," if by else ""
    try:
        with place.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ConfigError(f"The configuration file {place}{extended} has more than {MAX_FILE_BYTES >> 10} KiB; that is no job.")
        return data.decode()
    except FileNotFoundError as error:
        advice = (
            "Mend the path; it is relative to the file that extends." if by else "Give the path of a YAML file, for example jobs/tiny.yaml."
        )
        raise ConfigError(f"The configuration file {place}{extended} does not exist. {advice}") from error
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a path that no file can have
        raise ConfigError(
            f"The configuration file {str(place)!r}{extended} cannot be read as UTF-8 text ({error}). Give the path of a YAML file."
        ) from error


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{EXTENDS}: {path[:100]!r} is in nobody's home ({error}). Give the path of a YAML file.") from error


def _merged(below: Any, above: Any) -> Any:
    """`above` laid over `below`: section into section, key by key; anything else, and a section of another kind, takes its place."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    if "kind" in above and above["kind"] != below.get("kind", above["kind"]):
        return above
    return {**below, **{name: _merged(below.get(name), value) for name, value in above.items()}}


def _parse(text: str, place: str, draft: _Draft, *, as_mapping: bool = False, under: KeyPath = ()) -> Any:
    """Parse YAML, note the origin of each key and refuse duplicates, non-text keys and numbers that are not finite."""
    loader = None
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if as_mapping and not isinstance(node, yaml.MappingNode):
            found = "is empty" if node is None else f"holds a {type(node).__name__.removesuffix('Node').lower()} at its top"
            raise ConfigError(f"{place} {found}, not a mapping of sections. Write for example `run:` and, indented below it, `steps: 60`.")
        if node is None:
            return None
        _index(node, under, place if as_mapping else None, draft)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{place}, line {mark.line + 1}" if mark is not None and as_mapping else place
        raise ConfigError(
            f"{where}: not valid YAML ({getattr(error, 'problem', None) or error}). Check indentation, colons and quotes."
        ) from error
    finally:
        if loader is not None:
            loader.dispose()


def _index(node: yaml.Node, key: KeyPath, file: str | None, draft: _Draft) -> None:
    """Walk the node tree: origins of keys go to the draft, and so do duplicates and values no number can be."""
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            _index(item, (*key, f"[{number}]"), file, draft)
    if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:float" and not _is_finite(node.value):
        draft.problems.append(f"{_dotted(key)}={node.value} is not a finite number{draft.origin(key)}")
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for name_node, value_node in node.value:
        line = name_node.start_mark.line + 1
        place = f"{file}, line {line}" if file else draft.origin(key).strip(" ()")
        child = (*key, str(name_node.value))
        if not isinstance(name_node, yaml.ScalarNode) or name_node.tag != "tag:yaml.org,2002:str":
            draft.problems.append(f"key {name_node.value!r} is not text ({place}); put it in quotes")
            continue
        if name_node.value in seen:
            draft.problems.append(f"key {_dotted(child)} is there twice, at line {seen[name_node.value]} and again ({place})")
        seen[name_node.value] = line
        draft.origins[child] = place
        _index(value_node, child, file, draft)


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _apply_override(override: str, draft: _Draft) -> None:
    name, equals, text = override.partition("=")
    key = tuple(name.strip().split("."))
    if not equals or not all(key) or len(key) > MAX_DEPTH:
        draft.problems.append(f"override {override[:200]!r} is not of the form section.key=value, for example run.steps=20")
        return
    origin = f"override {override!r}"
    draft.origins[key] = origin
    value = _parse(text, origin, draft, under=key)
    branch: Any = draft.tree
    for depth, part in enumerate(key[:-1], start=1):
        branch = branch.setdefault(part, {})
        if not isinstance(branch, dict):
            draft.problems.append(f"{origin} sets a key inside {'.'.join(key[:depth])}, which is {_show(branch)} and not a section")
            return
    branch[key[-1]] = value


def _default_source_kind(tree: dict[str, Any]) -> None:
    """`data.train.digits=2` alone means the default's kind: fill it in where only that kind's keys are given."""
    data = tree.get("data")
    train = data.get("train") if isinstance(data, dict) else None
    if isinstance(train, dict) and "kind" not in train and train and set(train) <= set(ArithmeticSource.model_fields):
        train["kind"] = "arithmetic"


def _describe(error: ValidationError, draft: _Draft) -> list[str]:
    """One sentence per key; the branches of a union that all failed become alternatives of one sentence."""
    sentences: dict[KeyPath, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        sentences.setdefault(_key_of(detail, draft.tree), []).append(detail)
    told = [_sentence(key, details, draft) for key, details in islice(sentences.items(), MAX_PROBLEMS)]
    return told + [f"{name} is not valid either" for name in map(_dotted, islice(sentences, MAX_PROBLEMS, None))]


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


def _sentence(key: KeyPath, details: Sequence[ErrorDetails], draft: _Draft) -> str:
    first = details[0]
    name, origin = _dotted(key), draft.origin(key)
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
    return f"{name}={_show(value)}{origin}: expected {expected}{hint}"


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


def _dotted(key: KeyPath) -> str:
    return ".".join(key).replace(".[", "[")


def _without_indices(key: KeyPath) -> KeyPath:
    return tuple(part for part in key if not part.startswith("["))


def _show(value: Any) -> str:
    """A value as YAML would write it on one line, cut to a readable length."""
    text = "null" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _suggest(key: KeyPath, draft: _Draft) -> str:
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


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated, tuple):
        for part in typing.get_args(annotation):
            yield from _sections(part)


def _paragraph(path: str | None, problems: Sequence[str]) -> str:
    subject = f"The configuration {path}" if path else "The configuration"
    problems = [problem if len(problem) <= 1000 else f"{problem[:1000]}..." for problem in problems]
    if len(problems) == 1:
        return f"{subject} is not valid: {problems[0]}."
    told = "; ".join(f"({i}) {problem}" for i, problem in enumerate(problems[:MAX_PROBLEMS], start=1))
    return f"{subject} has {len(problems)} problems: {told}{'; and so on' if len(problems) > MAX_PROBLEMS else ''}."
