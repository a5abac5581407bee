"""What a model folder's `config.json` states, checked before a library makes layers of it.

A library believes these numbers: a file of a few bytes that states 10^9 layers would keep it busy, and fill memory, for ever.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from next_ray.errors import ModelError
from next_ray.models.folder import CONFIG_FILE, read_json

MAX_NUMBER = 2**40
MAX_REPEATED = 100_000
FEW = 1000
"""So many of anything are soon made."""
_REPEATED = re.compile(r"experts?$|blocks?$|^depths?$|^num_labels$")
"""Keys whose number is how often something is made."""


def check_stated(folder: Path, num_tensors: int) -> None:
    """Refuse a configuration with numbers that no model of `num_tensors` stored tensors can have, or with kernels from a hub.

    Raises:
        ModelError: names the key.
    """
    for key, value in _leaves(read_json(folder / CONFIG_FILE)):
        if key.endswith("attn_implementation") and isinstance(value, str) and "/" in value:
            raise ModelError(
                f"{folder / CONFIG_FILE}: {key}={value[:100]!r} would load code from a hub, which a model's file may not. Remove it."
            )
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        # A layer has a tensor of its own at least; experts may share one.
        most = max(num_tensors, FEW) if key.endswith(("layers", "layer")) else MAX_REPEATED if _REPEATED.search(key) else MAX_NUMBER
        if abs(value) > most:
            raise ModelError(
                f"{folder / CONFIG_FILE}: {key} is {value if abs(value) < 10**20 else 'enormous'}, more than this model's weight files "
                "can hold. Copy the model again, from where you trust it."
            )


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """All values that hold no others, with the nearest key."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, key)
    else:
        yield key, value
