"""From a YAML file and `key=value` overrides to a `Config` (or another tree of sections), with every problem named at once.

Level 1: pydantic and PyYAML only. What is valid is said in `next_ray.config`; here a problem gets its place (file and line, or override),
in `problems` its words and the nearest valid key.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from next_ray.config import ArithmeticSource, Config
from next_ray.errors import ConfigError
from next_ray.settings.problems import Draft, KeyPath, describe, dotted, paragraph, show
from next_ray.yaml_core import MAX_DEPTH, Dumper, Loader

EXTENDS = "extends"
"""Key of a file that names another one, whose settings hold where the file itself says nothing."""

MAX_FILE_BYTES = 2**20

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
    draft = Draft(schema)
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
        raise ConfigError(paragraph(path, [*draft.problems, *describe(error, draft)])) from error
    if draft.problems:
        raise ConfigError(paragraph(path, draft.problems))
    return config


def to_yaml(config: BaseModel) -> str:
    """The whole resolved tree as YAML that `load_as` reads back to an equal one."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)


def _read_file(path: str, draft: Draft) -> None:
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
            raise ConfigError(f"{EXTENDS}={show(parent)}{where}: expected the path of one YAML file, beside or relative to this one.")
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
            "Mend the path; it is relative to the file that extends."
            if by
            else f"Give the path of a YAML file, for example {_near(place)}."
        )
        raise ConfigError(f"The configuration file {place}{extended} does not exist. {advice}") from error
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a path that no file can have
        raise ConfigError(
            f"The configuration file {str(place)!r}{extended} cannot be read as UTF-8 text ({error}). Give the path of a YAML file."
        ) from error


def _near(place: Path) -> Path:
    """The YAML file whose name is nearest, of those in the same folder; else one that the project has."""
    beside = {file.name: file for file in place.parent.glob("*.y*ml")}
    named = difflib.get_close_matches(place.name, beside, n=1, cutoff=0.5)
    return beside[named[0]] if named else Path("jobs/tiny.yaml")


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


def _parse(text: str, place: str, draft: Draft, *, as_mapping: bool = False, under: KeyPath = ()) -> Any:
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


def _index(node: yaml.Node, key: KeyPath, file: str | None, draft: Draft) -> None:
    """Walk the node tree: origins of keys go to the draft, and so do duplicates and values no number can be."""
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            _index(item, (*key, f"[{number}]"), file, draft)
    if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:float" and not _is_finite(node.value):
        draft.problems.append(f"{dotted(key)}={node.value} is not a finite number{draft.origin(key)}")
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
            draft.problems.append(f"key {dotted(child)} is there twice, at line {seen[name_node.value]} and again ({place})")
        seen[name_node.value] = line
        draft.origins[child] = place
        _index(value_node, child, file, draft)


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _apply_override(override: str, draft: Draft) -> None:
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
            draft.problems.append(f"{origin} sets a key inside {'.'.join(key[:depth])}, which is {show(branch)} and not a section")
            return
    branch[key[-1]] = value


def _default_source_kind(tree: dict[str, Any]) -> None:
    """`data.train.digits=2` alone means the default's kind: fill it in where only that kind's keys are given."""
    data = tree.get("data")
    train = data.get("train") if isinstance(data, dict) else None
    if isinstance(train, dict) and "kind" not in train and train and set(train) <= set(ArithmeticSource.model_fields):
        train["kind"] = "arithmetic"
