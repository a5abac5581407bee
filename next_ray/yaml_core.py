"""YAML as people expect it: 1.2's core schema instead of PyYAML's 1.1, on top of the safe loader and dumper."""

from __future__ import annotations

import re
from typing import Any

import yaml
import yaml.composer
import yaml.constructor

MAX_DEPTH = 40
"""How deep mappings and sequences may lie in each other; the configuration needs ten."""


class Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's plain scalars, without aliases, and with JSON's types and no others (no dates, sets or bytes).

    Whatever is wrong with a text is a `yaml.YAMLError`.
    """

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """As in the base class; an alias, or nesting beyond `MAX_DEPTH`, is a `ComposerError`."""
        mark = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not supported here", mark)
        if self._depth >= MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"nested more than {MAX_DEPTH} deep", mark)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """As in the base class; text that is not of its tag (`!!int x`) is a `ConstructorError`."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError):
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(None, None, f"this is no {kind}", node.start_mark) from None


_JSON_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")}
# The entry for None answers for every other tag: an error.
Loader.yaml_constructors = {
    tag: construct for tag, construct in yaml.SafeLoader.yaml_constructors.items() if tag is None or tag in _JSON_TAGS
}


# YAML 1.2's core schema: 5e-6 is a number, 0123, yes, no and 2026-01-01 are text.
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in (
    ("bool", r"^(true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^[-+]?(0|[1-9][0-9_]*)$", "-+0123456789"),
    (
        "float",
        r"^[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$",
        "-+0123456789.",
    ),
):
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


class Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what either `Loader` or a plain YAML 1.1 reader would not take for text."""


Dumper.yaml_implicit_resolvers = {
    first: [*Loader.yaml_implicit_resolvers.get(first, []), *yaml.SafeDumper.yaml_implicit_resolvers.get(first, [])]
    for first in {*Loader.yaml_implicit_resolvers, *yaml.SafeDumper.yaml_implicit_resolvers}
}
