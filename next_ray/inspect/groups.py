"""Which layer and which kind of matrix a module is, from its name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable


def module_group(name: str) -> str:
    """The kind of matrix: the last part of the name without `_proj` (`model.layers.3.self_attn.q_proj` is a `q`)."""
    return name.rpartition(".")[2].removesuffix("_proj")


def module_layer(name: str) -> int | None:
    """The first part of the name that is a number; None for matrices outside the layers."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def by_group(names: Iterable[str]) -> dict[str, list[str]]:
    """Group to module names, groups in order of appearance."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[module_group(name)].append(name)
    return dict(groups)
