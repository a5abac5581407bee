"""A configuration as dotted keys, and where several configurations differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf as `section.key` and value, as overrides write it."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def differing(trees: Sequence[Mapping[str, Any]], own: tuple[str, ...]) -> dict[str, list[Any]]:
    """Dotted key to its value in each tree (None where one lacks it), of the keys that differ and begin with none of `own`."""
    leaves = [dict(flat(tree)) for tree in trees]
    keys = dict.fromkeys(key for found in leaves for key in found)
    values = {key: [found.get(key) for found in leaves] for key in keys if not key.startswith(own)}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}
