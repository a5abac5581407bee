"""Which layer and which kind of matrix a module is, from its name."""

from __future__ import annotations

from collections.abc import Iterable

USUAL = ("q", "k", "v", "o", "gate", "up", "down")


def module_group(name: str) -> str:
    """The kind of matrix: the last part of the name without `_proj` or `_tokens` (`model.layers.3.self_attn.q_proj` is a `q`)."""
    return name.rpartition(".")[2].removesuffix("_proj").removesuffix("_tokens")


def module_layer(name: str) -> int | None:
    """The first part of the name that is a number; None for matrices outside the layers."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def by_group(names: Iterable[str]) -> dict[str, list[str]]:
    """Group to module names: groups in the order in which a layer computes them, unknown ones behind in order of appearance."""
    groups: dict[str, list[str]] = {group: [] for group in USUAL}
    for name in names:
        groups.setdefault(module_group(name), []).append(name)
    return {group: members for group, members in groups.items() if members}
